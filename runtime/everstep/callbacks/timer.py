"""Keeps the time of a fit, and ends it when that is over."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer
    from everstep.trainer.clock import Alarm, Duration


class Timer(Callback):
    """Times of earlier lives of a run count.

    Args:
        duration: the most that training may take: "DD:HH:MM:SS", a timedelta, or a dict of its arguments; None: only
            measure.
        interval: "step": look after each batch; "epoch": after each epoch, so that the last one is whole.
        verbose: say so when it is over.
    """

    def __init__(
        self,
        duration: "Duration | None" = None,
        interval: Literal["step", "epoch"] = "step",
        verbose: bool = True,
    ) -> None:
        from everstep.trainer.clock import seconds

        if interval not in ("step", "epoch"):
            raise ConfigurationError(f'Timer(interval={interval!r}): give "step" or "epoch"')
        self.interval, self.verbose = interval, verbose
        self._duration = seconds(duration, "duration") if duration is not None else None
        self._start: dict[str, float | None] = dict.fromkeys(("train", "validate", "test"))
        self._end: dict[str, float | None] = dict.fromkeys(self._start)
        self._earlier = 0.0  # seconds of training in earlier lives
        self._alarm: Alarm | None = None

    def start_time(self, stage: str = "train") -> float | None:
        """By time.monotonic; `stage`: train, validate or test."""
        return self._start[stage]

    def end_time(self, stage: str = "train") -> float | None:
        """When the stage ended, in seconds of a clock without a date; None: it has not."""
        return self._end[stage]

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds."""
        earlier = self._earlier if stage == "train" else 0.0
        start, end = self._start[stage], self._end[stage]
        if start is None:
            return earlier
        return earlier + (end if end is not None else time.monotonic()) - start

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds of `duration`; None: there is no limit."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in self._start}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["time_elapsed"]["train"]

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        from everstep.trainer.clock import Alarm

        self._start["train"], self._end["train"] = time.monotonic(), None
        if self._duration is not None:
            self._alarm = Alarm(self._duration, trainer.strategy, self._earlier)
            trainer.should_stop |= self._alarm.is_over

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.interval == "step":
            self._look(trainer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.interval == "epoch":
            self._look(trainer)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._end["train"] = time.monotonic()

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._start["validate"], self._end["validate"] = time.monotonic(), None

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._end["validate"] = time.monotonic()

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._start["test"], self._end["test"] = time.monotonic(), None

    def on_test_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._end["test"] = time.monotonic()

    def _look(self, trainer: "Trainer") -> None:
        if self._alarm is None or not self._alarm.rings():
            return
        trainer.should_stop = True
        if self.verbose:
            trainer.print(f"Timer: {timedelta(seconds=int(self.time_elapsed()))} are over, the fit ends")
        self._alarm = None
