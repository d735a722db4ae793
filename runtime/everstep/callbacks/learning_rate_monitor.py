"""Logs the learning rates."""

from typing import TYPE_CHECKING, Any, Literal

import torch

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class LearningRateMonitor(Callback):
    """Names are `lr-Adam`, with several optimizers of a class `lr-Adam-1` …, with several parameter groups
    `lr-Adam/pg1` … or the group's own "name"; a scheduler's "name" stands for `lr-Adam`.

    Args:
        logging_interval: "step": at each log step; "epoch": at each epoch's beginning; None: each rate as often as its
            scheduler steps.
        log_momentum: also `…-momentum`. log_weight_decay: also `…-weight_decay`.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigurationError(
                f'LearningRateMonitor(logging_interval={logging_interval!r}): give "step", "epoch" or None'
            )
        self.logging_interval = logging_interval
        self.log_momentum, self.log_weight_decay = log_momentum, log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self._logged_step = -1

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not trainer.loggers:
            raise ConfigurationError(
                "LearningRateMonitor has nothing to log to, since the Trainer has no logger: give it one, or take "
                "LearningRateMonitor away"
            )

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        step = trainer.batches_that_stepped
        if self.logging_interval != "epoch" and trainer.is_log_step and step != self._logged_step:
            self._logged_step = step
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def _log(self, trainer: "Trainer", interval: str) -> None:
        values = self._values(trainer, None if self.logging_interval else interval)
        if not values:
            return
        for name, value in values.items():
            self.lrs.setdefault(name, []).append(value)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        trainer.logs.send(values, trainer.batches_that_stepped, trainer.current_epoch)

    def _values(self, trainer: "Trainer", interval: str | None) -> dict[str, float]:
        """`interval`: only of schedulers that step by it, and of optimizers without a scheduler."""
        values: dict[str, float] = {}
        seen: list[type] = []
        with_scheduler = []
        for config in trainer.lr_scheduler_configs:
            optimizer = config.scheduler.optimizer
            with_scheduler.append(id(optimizer))
            name = config.name or _numbered(optimizer, seen)
            if interval is None or config.interval == interval:
                values |= self._of(name, optimizer)
        for optimizer in trainer.optimizers:
            if id(optimizer) not in with_scheduler:
                values |= self._of(_numbered(optimizer, seen), optimizer)
        return values

    def _of(self, name: str, optimizer: "Optimizer") -> dict[str, float]:
        values: dict[str, float] = {}
        groups = optimizer.param_groups
        for number, group in enumerate(groups, 1):
            full = f"{name}/{group.get('name', f'pg{number}')}" if len(groups) > 1 else name
            values[full] = float(group["lr"])
            if self.log_momentum:
                values[f"{full}-momentum"] = float(group["betas"][0] if "betas" in group else group.get("momentum", 0))
            if self.log_weight_decay:
                values[f"{full}-weight_decay"] = float(group.get("weight_decay", 0))
        return values


def _numbered(optimizer: "Optimizer", seen: list[type]) -> str:
    kind = type(optimizer)
    number = seen.count(kind)
    seen.append(kind)
    return f"lr-{kind.__name__}" + (f"-{number}" if number else "")
