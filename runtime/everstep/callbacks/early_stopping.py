"""Ends a fit when a metric no longer gets better."""

from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class EarlyStoppingReason(Enum):
    """Why EarlyStopping has ended a fit. The numbers are what checkpoints hold."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """All ranks stop if one of them would; `stopping_reason` and `stopping_reason_message` then say why this one would.

    Args:
        monitor: the metric's name in `self.log`.
        min_delta: less of a change is no improvement.
        patience: checks without improvement after which the fit ends.
        mode: "min": smaller is better; "max": larger.
        strict: the metric has to be there at each check.
        check_finite: end when it is NaN or infinite.
        stopping_threshold: end as soon as it is better than this. divergence_threshold: … or worse than this.
        check_on_train_epoch_end: check after training epochs; False: after validations. Default: after validations if
            they come at other times than the epochs' ends.
        verbose: say why it stops, and what has improved; log_rank_zero_only: on rank 0 only.
    """

    monitors = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: Literal["min", "max"] = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f'EarlyStopping(mode={mode!r}): give "min" or "max"')
        if not isinstance(patience, int) or patience < 0:
            raise ConfigurationError(
                f"EarlyStopping(patience={patience!r}): it has to be a number of checks, at least 0"
            )
        if not isinstance(min_delta, int | float):
            raise ConfigurationError(f"EarlyStopping(min_delta={min_delta!r}): it has to be a number")
        self.monitor, self.min_delta, self.patience, self.mode = monitor, abs(min_delta), patience, mode
        self.verbose, self.strict, self.check_finite = verbose, strict, check_finite
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(float("inf") if mode == "min" else float("-inf"))
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}{ {'monitor': self.monitor, 'mode': self.mode} }"

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wait_count, self.stopped_epoch = state_dict["wait_count"], state_dict["stopped_epoch"]
        self.best_score, self.patience = state_dict["best_score"], state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))  # files before Lightning 2.6
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        if self._check_on_train_epoch_end is None:
            self._check_on_train_epoch_end = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._check_on_train_epoch_end:
            self._check(trainer)

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not self._check_on_train_epoch_end and trainer.fitting and not trainer.sanity_checking:
            self._check(trainer)

    def _check(self, trainer: "Trainer") -> None:
        if trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            if self.strict:
                raise ConfigurationError(
                    f"EarlyStopping monitors {self.monitor!r}, which was not logged. Logged so far: "
                    f"{', '.join(sorted(metrics)) or 'nothing'}. Log it with self.log, change monitor=…, or set "
                    "strict=False"
                )
            return
        before = self.best_score
        reason = self._judge(metrics[self.monitor].detach().cpu().reshape(()))
        stop = not trainer.strategy.all_true(reason is None)
        if reason is not None:
            self.stopping_reason, self.stopping_reason_message = reason
        if stop:
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
        if not self.verbose:
            return
        if reason is not None:
            self._say(trainer, reason[1])
        elif self.best_score is not before:
            was = f", from {before:.4g}" if torch.isfinite(before) else ""
            self._say(trainer, f"{self.monitor} has improved to {self.best_score:.4g}{was}")

    def _judge(self, score: Tensor) -> tuple[EarlyStoppingReason, str] | None:
        """Why to stop, also in words; None: there is no reason to."""
        name, why = self.monitor, EarlyStoppingReason
        if self.check_finite and not torch.isfinite(score):
            return why.NON_FINITE_METRIC, f"{name} is {score:.4g}; best was {self.best_score:.4g}"
        if self.stopping_threshold is not None and self._better(score, self.stopping_threshold):
            goal = f"{name} has reached its goal: {score:.4g} is better than {self.stopping_threshold}"
            return why.STOPPING_THRESHOLD, goal
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, score):
            astray = f"{name} has gone astray: {score:.4g} is worse than {self.divergence_threshold}"
            return why.DIVERGENCE_THRESHOLD, astray
        delta = self.min_delta if self.mode == "max" else -self.min_delta
        if self._better(score - delta, self.best_score.to(score.dtype)):
            self.best_score, self.wait_count = score, 0
            return None
        self.wait_count += 1
        if self.wait_count < self.patience:
            return None
        stands = f"{name} has not improved in {self.wait_count} checks; best was {self.best_score:.4g}"
        return why.PATIENCE_EXHAUSTED, stands

    def _better(self, one: Tensor | float, other: Tensor | float) -> bool:
        return bool(one < other if self.mode == "min" else one > other)

    def _say(self, trainer: "Trainer", text: str) -> None:
        if trainer.is_global_zero or not self.log_rank_zero_only:
            rank = f" (rank {trainer.global_rank})" if trainer.world_size > 1 else ""
            print(f"EarlyStopping{rank}: {text}", flush=True)
