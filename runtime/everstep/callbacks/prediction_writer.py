"""Writes predictions as they come, instead of keeping them all in memory."""

from typing import TYPE_CHECKING, Any, Literal

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class BasePredictionWriter(Callback):
    """Override `write_on_batch_end`, `write_on_epoch_end` or both, on every rank: each has its own part of the data.
    With `trainer.predict(…, return_predictions=False)` and "batch", nothing is kept.

    Args:
        write_interval: which of them are called: "batch", "epoch" or "batch_and_epoch".
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        if write_interval not in ("batch", "epoch", "batch_and_epoch"):
            raise ConfigurationError(
                f'{type(self).__name__}(write_interval={write_interval!r}): give "batch", "epoch" or "batch_and_epoch"'
            )
        self.write_interval = write_interval
        self.needs_predictions = write_interval != "batch"

    def write_on_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        prediction: Any,
        batch_indices: list[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """`batch_indices`: of the batch's samples in the data set; None: not known, as of an iterable one."""
        raise NotImplementedError

    def write_on_epoch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", predictions: Any, batch_indices: Any
    ) -> None:
        """Both by loader and batch: `predictions[loader][batch]`; with one loader as well for `batch_indices`, and
        `predictions[batch]`."""
        raise NotImplementedError

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if "batch" in self.write_interval:
            indices = trainer.prediction_indices[dataloader_idx][-1]
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if "epoch" in self.write_interval:
            predictions: Any = trainer.predictions
            one = len(predictions) == 1
            self.write_on_epoch_end(
                trainer, pl_module, predictions[0] if one else predictions, trainer.prediction_indices
            )
