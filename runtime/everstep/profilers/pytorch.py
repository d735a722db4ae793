"""torch.profiler: operators on the host and kernels on the device."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.profilers.report import ReportingProfiler

_MARKS_A_STEP = ("training_step", "validation_step", "test_step", "predict_step")
#: Lightning's, and what does their work.
_INSTEAD = {
    "emit_nvtx": "run the script under `nsys profile`, inside torch.autograd.profiler.emit_nvtx()",
    "record_module_names": "with_stack=True shows where operators come from",
    "export_to_flame_graph": "with_stack=True, and open the trace in Perfetto, which draws one",
}


class PyTorchProfiler(ReportingProfiler):
    """A table of operators, and a trace for chrome://tracing, Perfetto and TensorBoard: by default of steps 3 to 5,
    since a trace of everything does not fit into memory.

    Args:
        group_by_input_shapes: a row of the table for each shape of an operator's inputs.
        schedule: as torch.profiler's: step -> ProfilerAction.
        export_to_chrome: write <folder>/<stage>-<filename or "trace">[-<rank>].json.
        row_limit: of the table; -1: all. sort_by_key: a column, such as "cuda_time_total".
        table_kwargs: further arguments of the table, such as max_name_column_width.
        kwargs: of torch.profiler.profile, such as profile_memory, record_shapes, with_stack.

    Raises:
        ConfigurationError: torch.profiler.profile has no such argument.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        *,
        schedule: Callable[[int], Any] | None = None,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        table_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        known = inspect.signature(torch.profiler.profile).parameters
        for name in kwargs:
            if name not in known:
                instead = _INSTEAD.get(name, f"torch.profiler.profile takes {', '.join(known)}")
                raise ConfigurationError(f"PyTorchProfiler has no argument {name}: {instead}")
        self.group_by_input_shapes, self.table_kwargs = group_by_input_shapes, table_kwargs or {}
        self.schedule = schedule or torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1)
        self.export_to_chrome, self.row_limit = export_to_chrome, row_limit
        self.sort_by_key = sort_by_key or ("cuda_time_total" if torch.cuda.is_available() else "cpu_time_total")
        self._options = {"record_shapes": True, **kwargs} if group_by_input_shapes else kwargs
        self._stage = ""
        self._profile: Any = None
        self._tables: list[str] = []

    @contextmanager
    def profile(self, action: str) -> Iterator[None]:
        if self._profile is None:
            yield
            return
        if action in _MARKS_A_STEP:
            self._profile.step()
        with torch.profiler.record_function(action):
            yield

    def setup(self, stage: str, log_dir: str | None) -> None:
        super().setup(stage, log_dir)
        self._stage, self._tables = stage, []
        self._profile = torch.profiler.profile(
            **{"schedule": self.schedule, "on_trace_ready": self._ready, "acc_events": True, **self._options}
        )
        self._profile.__enter__()

    def _ready(self, profile: Any) -> None:
        """A window of the schedule is over."""
        averages = profile.key_averages(group_by_input_shape=self.group_by_input_shapes)
        self._tables.append(averages.table(sort_by=self.sort_by_key, row_limit=self.row_limit, **self.table_kwargs))
        if self.export_to_chrome:
            rank = Environment.read().rank
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"{self._stage}-{self.filename or 'trace'}{f'-{rank}' if rank else ''}"
            number = f"-{len(self._tables)}" if len(self._tables) > 1 else ""
            profile.export_chrome_trace(str(self.folder / f"{name}{number}.json"))

    def summary(self) -> str:
        if self._tables:
            return "\n".join(self._tables)
        return "nothing was profiled: the call ended before the schedule's first active step (give another schedule)\n"

    def teardown(self, stage: str) -> None:
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._profile = None
        super().teardown(stage)
