"""TensorBoard's event files. Needs the tensorboard package, which is imported when the first value is logged."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from everstep.errors import ConfigurationError
from everstep.loggers.base import rank_zero_experiment
from everstep.loggers.folder import FolderLogger
from everstep.loggers.hparams import flat


class TensorBoardLogger(FolderLogger):
    """Writes event files and hparams.yaml to <save_dir>/<name>/version_<n>[/<sub_dir>].

    After a resume the curve goes on at the resumed step: values that were logged later are hidden by TensorBoard.

    Args:
        version: a number, or the folder's name; default: the next free number.
        log_graph: draw the module's graph too; it needs an `example_input_array`.
        default_hp_metric: give TensorBoard's table of hyper-parameters a metric "hp_metric" if no other is given; it
            shows nothing without one.
        kwargs: of torch.utils.tensorboard.SummaryWriter, such as flush_secs.
    """

    saves_itself = True

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = ".",
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = sub_dir
        self._options = kwargs
        self._writer: Any = None
        self._last_step = -1
        self._hparams_told: dict[str, Any] = {}

    @property
    def log_dir(self) -> str:
        folder = super().log_dir
        return os.path.join(folder, self._sub_dir) if self._sub_dir is not None else folder

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SummaryWriter, on rank 0.

        Raises:
            ConfigurationError: tensorboard is not installed.
        """
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigurationError(
                    f"TensorBoardLogger needs tensorboard ({error}): pip install tensorboard, or take CSVLogger"
                ) from None
            purge = {"purge_step": self._last_step + 1} if self._last_step >= 0 else {}
            self._writer = SummaryWriter(self.log_dir, **{**purge, **self._options})
        return self._writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        writer = self.experiment
        for name, value in self.prefixed(metrics).items():
            if isinstance(value, dict):
                writer.add_scalars(name, value, step)
            else:
                writer.add_scalar(name, value, step)
        if step is not None:
            self._last_step = max(self._last_step, step)

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        super().log_hyperparams(params, metrics)
        given = metrics is not None
        if metrics is None:
            metrics = {"hp_metric": -1.0} if self._default_hp_metric else {}
        params = flat(params)
        if not metrics or (params == self._hparams_told and not given):  # the next call of the same Trainer
            return
        self._hparams_told = params
        from torch.utils.tensorboard.summary import hparams

        if given or self._last_step < 0:  # a resumed run has the default
            for name, value in metrics.items():
                self.experiment.add_scalar(name, value, 0)
        file_writer = self.experiment._get_file_writer()
        for summary in hparams(params, dict(metrics)):  # type: ignore[no-untyped-call]
            file_writer.add_summary(summary)

    def log_graph(self, model: Any) -> None:
        example = getattr(model, "example_input_array", None)
        if not self._log_graph:
            return
        if example is None:
            raise ConfigurationError(
                f"log_graph=True, but {type(model).__name__} has no example_input_array: set it in __init__"
            )
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        training = model.training
        model.eval()
        self.experiment.add_graph(model, example.to(device) if isinstance(example, torch.Tensor) else example)
        model.train(training)

    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def state_dict(self) -> dict[str, Any]:
        self.save()
        return {"version": self.version, "step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._version, self._last_step = None, state["version"], state["step"]
