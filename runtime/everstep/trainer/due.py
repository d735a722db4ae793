"""When a validation is due in the middle of a fit."""

from typing import TYPE_CHECKING

from everstep.errors import ConfigurationError
from everstep.trainer.clock import Alarm

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer


class Due:
    """After batches, by val_check_interval and check_val_every_n_epoch."""

    def __init__(self, trainer: "Trainer", rounds: int | None) -> None:
        """`rounds`: batches of a rank in an epoch, if that is known.

        Raises:
            ConfigurationError: the interval and the length of an epoch do not go together.
        """
        self.trainer = trainer
        every = trainer.val_check_interval
        self._alarm: Alarm | None = None
        self._every: int | None = None  # batches; None: the end of the epoch
        if trainer.val_check_seconds is not None:
            self._alarm = Alarm(trainer.val_check_seconds, trainer.strategy)
        elif isinstance(every, float) and every < 1.0:
            if rounds is None:
                raise ConfigurationError(
                    f"val_check_interval={every} is a part of an epoch of unknown length: give a number of batches "
                    "(an int)"
                )
            self._every = max(1, int(rounds * every))
        elif isinstance(every, int):
            self._every = every
            if rounds is not None and every > rounds and trainer.check_val_every_n_epoch is not None:
                raise ConfigurationError(
                    f"val_check_interval={every} is more than the {rounds} batches of an epoch: there would be no "
                    "validation. Lower it, give 1.0 for the end of the epoch, or count across epochs with "
                    "check_val_every_n_epoch=None"
                )

    def after(self, rounds: int, earlier: int, last: bool) -> bool:
        """After so many batches of this epoch, and so many of earlier ones. `last`: the epoch ends here."""
        trainer = self.trainer
        across = trainer.check_val_every_n_epoch is None
        if not across and (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:  # type: ignore[operator]
            return False
        if self._alarm is not None:
            if not self._alarm.rings():
                return False
            self._alarm.restart()
            return True
        if self._every is None:
            return last
        return (earlier + rounds if across else rounds) % self._every == 0
