"""What the measuring profilers share: wrapping, and where the report goes."""

import os
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from everstep.environment import Environment
from everstep.profilers.base import Profiler


class ReportingProfiler(Profiler):
    """Override `profile` and `summary`.

    Args:
        dirpath, filename: the report goes to <dirpath>/<stage>-<filename>[-<rank>].txt; without a filename it is
            printed on rank 0. Default of dirpath: the logger's log_dir.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None) -> None:
        self.dirpath, self.filename = dirpath, filename
        self._log_dir: str | None = None

    def summary(self) -> str:
        """The report, as text."""
        raise NotImplementedError

    def timed(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        profile = self.profile

        @wraps(function, updated=())
        def measured(*args: Any, **kwargs: Any) -> Any:
            with profile(action):
                return function(*args, **kwargs)

        return measured

    def timed_iterator(self, action: str, iterator: Iterator[Any]) -> Iterator[Any]:
        iterator = iter(iterator)
        end = object()
        while True:
            with self.profile(action):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def setup(self, stage: str, log_dir: str | None) -> None:
        self._log_dir = log_dir

    def teardown(self, stage: str) -> None:
        rank = Environment.read().rank
        if self.filename is None:
            if rank == 0:
                print(f"{type(self).__name__}, {stage}:\n{self.summary()}", flush=True)
            return
        path = self.folder / f"{stage}-{self.filename}{f'-{rank}' if rank else ''}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.summary(), encoding="utf-8")

    @property
    def folder(self) -> Path:
        """Where reports go: dirpath, or the logger's folder of this run."""
        return Path(self.dirpath or self._log_dir or ".")


def table(header: list[str], rows: list[list[str]]) -> str:
    """As text; the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        return " | ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )

    rule = "-" * (sum(widths) + 3 * len(widths) - 3)
    return "\n".join([line(header), rule, *map(line, rows)])
