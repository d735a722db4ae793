"""Prints the table of layers when a fit begins."""

from typing import TYPE_CHECKING

from everstep.callbacks.base import Callback
from everstep.utilities.model_summary import ModelSummary as Summary

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class ModelSummary(Callback):
    """Args:
    max_depth: of nested modules: 1: the module's own children; -1: all; 0: nothing is printed.
    """

    def __init__(self, max_depth: int = 1) -> None:
        self.max_depth = max_depth

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.max_depth and trainer.is_global_zero:
            self.show(Summary(pl_module, self.max_depth))

    def show(self, summary: Summary) -> None:
        """Print it; for sub-classes that show it elsewhere."""
        print(f"\n{summary}", flush=True)
