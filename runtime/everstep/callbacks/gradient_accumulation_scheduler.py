"""Changes how many batches make an optimizer step, by epoch."""

from typing import TYPE_CHECKING

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Args:
    scheduling: epoch -> batches of a step from that epoch on: {0: 8, 4: 4, 8: 1}. Before the first: 1.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        for epoch, factor in scheduling.items():
            if not (isinstance(epoch, int) and isinstance(factor, int) and epoch >= 0 and factor >= 1):
                raise ConfigurationError(
                    f"GradientAccumulationScheduler({{{epoch!r}: {factor!r}}}): give epochs from 0, and batches from 1"
                )
        if not scheduling:
            raise ConfigurationError("GradientAccumulationScheduler({}): give at least one epoch, such as {0: 8, 4: 4}")
        self.scheduling = dict(sorted(scheduling.items()))

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if trainer.accumulate_grad_batches != 1 and trainer.accumulate_grad_batches not in self.scheduling.values():
            raise ConfigurationError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} and a GradientAccumulationScheduler both "
                "say how many batches make a step: take one of them away"
            )
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                "GradientAccumulationScheduler does not go with automatic_optimization = False: step every n batches "
                "in training_step"
            )

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        trainer.accumulate_grad_batches = self.factor(trainer.current_epoch)

    def factor(self, epoch: int) -> int:
        """Batches of a step in this epoch."""
        return next((factor for start, factor in reversed(self.scheduling.items()) if start <= epoch), 1)
