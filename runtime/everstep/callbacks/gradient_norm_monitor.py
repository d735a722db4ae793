"""Logs the norms of gradients, and their distributions where a logger can draw them."""

from typing import TYPE_CHECKING

from everstep.callbacks.base import Callback
from everstep.utilities.grads import grad_norm

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class GradientNormMonitor(Callback):
    """At log steps, before clipping: `grad_2.0_norm_total` and, for each parameter, `grad_2.0_norm/<name>`. The values
    stay on the device until the loggers get them.

    Args:
        norm_type: 2, 1, "inf" …
        each_parameter: False: the total only.
        histograms: also the gradients' distributions, `gradients/<name>`, for loggers whose `experiment` has
            add_histogram (TensorBoard).
    """

    def __init__(self, norm_type: float | str = 2.0, each_parameter: bool = True, histograms: bool = False) -> None:
        self.norm_type, self.each_parameter, self.histograms = float(norm_type), each_parameter, histograms

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: "Optimizer"
    ) -> None:
        if not trainer.is_log_step:
            return
        for name, value in grad_norm(pl_module, self.norm_type).items():
            if self.each_parameter or name.endswith("_total"):
                pl_module.log(name, value, on_step=True, on_epoch=False)
        if self.histograms and trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: "Trainer", module: "LightningModule") -> None:
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_histogram"):
                for name, gradient in gradients.items():
                    logger.experiment.add_histogram(f"gradients/{name}", gradient, trainer.batches_that_stepped)
