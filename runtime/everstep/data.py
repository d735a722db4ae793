"""LightningDataModule: everything about the data in one object."""

from typing import Any

from everstep import seed


class LightningDataModule:
    """Override what you need; each *_dataloader returns a DataLoader (evaluation: or a list of them)."""

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
