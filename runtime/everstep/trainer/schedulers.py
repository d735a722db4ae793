"""When learning-rate schedulers step by themselves. With manual optimization the module steps them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer.trainer import Trainer


class Schedulers:
    """Of a fit, as its configurations say: they count steps or epochs, and those that look at a metric (plateau) wait
    until it is there. False: there are none."""

    def __init__(self, trainer: "Trainer", module: "LightningModule") -> None:
        self._trainer, self._module = trainer, module

    def __bool__(self) -> bool:
        return bool(self._trainer.lr_scheduler_configs) and self._module.automatic_optimization

    def after_step(self, rounds: int, last: bool) -> None:
        """`rounds`: batches of this epoch that are done; `last`: there are no more."""
        self._step("step", rounds)
        if last:
            self.end_of_steps()

    def end_of_steps(self) -> None:
        """Of an epoch, whose end is still to come."""
        self._step("epoch", self._trainer.current_epoch + 1)

    def after_validation(self, rounds: int) -> None:
        """After the step and the validation that may have come with it."""
        self._step("step", rounds, plateau=True)

    def after_epoch(self) -> None:
        """What the epoch's end logs is logged."""
        self._step("epoch", self._trainer.current_epoch + 1, plateau=True)

    def _step(self, interval: str, count: int, *, plateau: bool = False) -> None:
        """`count`: of the interval that is over."""
        if not self:
            return
        for config in self._trainer.lr_scheduler_configs:
            if config.interval == interval and config.reduce_on_plateau is plateau and count % config.frequency == 0:
                config.step(self._trainer.callback_metrics)
