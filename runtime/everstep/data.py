"""LightningDataModule: everything about the data in one object."""

import os
from typing import TYPE_CHECKING, Any, Self

from everstep import seed
from everstep.hparams import Hyperparameters, build

if TYPE_CHECKING:
    from everstep.trainer import Trainer


class LightningDataModule(Hyperparameters):
    """Override what you need; each *_dataloader returns a DataLoader (evaluation: or a list of them)."""

    trainer: "Trainer | None" = None  # of the latest call

    def __init__(self) -> None:
        seed.ensure_seeded()

    def prepare_data(self) -> None:
        """Download, tokenize …: on one process of each node, before `setup`. Set no attributes here."""

    def setup(self, stage: str | None = None) -> None:
        """In every process. `stage`: fit, validate, test or predict."""

    def teardown(self, stage: str | None = None) -> None:
        """In every process, after the Trainer call."""

    def train_dataloader(self) -> Any:
        """A DataLoader for fit."""

    def val_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for validation."""

    def test_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for test."""

    def predict_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for predict."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall hold of it, as tensors and plain data; comes back in `load_state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = None, **kwargs: Any
    ) -> Self:
        """One as it was saved, with the hyper-parameters in the file; `kwargs` win over them.

        Raises:
            ConfigurationError: there is no such file, it needs unpickling, or an argument of __init__ is missing.
        """
        from everstep.checkpoint import ckpt

        checkpoint = ckpt.read(checkpoint_path, map_location)
        datamodule: Self = build(cls, checkpoint, "datamodule", kwargs)
        if cls.__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[cls.__qualname__])
        return datamodule
