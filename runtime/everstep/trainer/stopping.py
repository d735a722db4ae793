"""When a fit ends: epochs, steps, time, or because somebody said so."""

import warnings
from typing import TYPE_CHECKING

from everstep.trainer.clock import Alarm

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer


class Stopping:
    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        limit = trainer.max_seconds
        self._alarm: Alarm | None = None
        self._warned = False
        self.resume(0.0)
        #: To be called after each batch, if there is a max_time: sets `should_stop` on all ranks when it is over.
        self.look_at_the_clock = self._look_at_the_clock if limit is not None else None

    @property
    def finished(self) -> bool:
        """Asked between two steps, and between two epochs."""
        trainer = self.trainer
        return (
            0 <= trainer.max_steps <= trainer.global_step
            or 0 <= trainer.max_epochs <= trainer.current_epoch
            or (trainer.should_stop and self.may_stop)
        )

    @property
    def may_stop(self) -> bool:
        """Is `should_stop` followed? Not before min_epochs and min_steps."""
        trainer = self.trainer
        enough = trainer.current_epoch >= trainer.min_epochs and trainer.global_step >= trainer.min_steps
        if not enough and not self._warned:
            self._warned = True
            warnings.warn(
                f"the fit is to stop, but goes on until min_epochs={trainer.min_epochs} and "
                f"min_steps={trainer.min_steps} are reached",
                stacklevel=2,
            )
        return enough

    def _look_at_the_clock(self) -> None:
        if self._alarm is not None and self._alarm.rings():
            self.trainer.should_stop = True

    @property
    def passed(self) -> float:
        """Seconds of max_time."""
        return self._alarm.passed if self._alarm is not None else 0.0

    def resume(self, passed: float) -> None:
        """`passed`: seconds of max_time that are over already."""
        trainer = self.trainer
        if trainer.max_seconds is not None:
            self._alarm = Alarm(trainer.max_seconds, trainer.strategy, passed)
            trainer.should_stop |= self._alarm.is_over
