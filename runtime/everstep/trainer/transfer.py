"""The way of a batch to the device, through the hooks around it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everstep.precision import Precision
from everstep.strategies import Strategy
from everstep.trainer.hooks import overridden

if TYPE_CHECKING:
    from everstep.data import LightningDataModule
    from everstep.module import LightningModule
    from everstep.trainer.trainer import Trainer

Transfer = Callable[[Any, int], Any]


def transfer(
    trainer: "Trainer", module: "LightningModule", datamodule: "LightningDataModule | None"
) -> Transfer | None:
    """(batch, dataloader_idx) -> the batch that hooks and steps get; None: nothing is to be done to it."""

    def hook(name: str) -> Callable[..., Any] | None:
        for owner in (datamodule, module):
            if owner is not None and overridden(owner, name):
                return trainer.profiler.timed(f"[{type(owner).__name__}]{name}", getattr(owner, name))
        return None

    before, move, after = map(hook, ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"))
    strategy, precision, device = trainer.strategy, trainer.precision_plugin, trainer.strategy.root_device
    converts = type(precision).convert_input is not Precision.convert_input
    if move is None and (device.type != "cpu" or type(strategy).to_device is not Strategy.to_device):
        to_device = trainer.profiler.timed("batch_to_device", strategy.to_device)

        def move(batch: Any, device: Any, dataloader_idx: int) -> Any:
            return to_device(batch)

    if before is None and move is None and after is None and not converts:
        return None

    def transferred(batch: Any, dataloader_idx: int) -> Any:
        if converts:
            batch = precision.convert_input(batch)
        if before is not None:
            batch = before(batch, dataloader_idx)
        if move is not None:
            batch = move(batch, device, dataloader_idx)
        if after is not None:
            batch = after(batch, dataloader_idx)
        return batch

    return transferred
