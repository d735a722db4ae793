"""LightningDataModule: everything about the data in one object."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from everstep import seed
from everstep.hparams import Hyperparameters, build, refuse_file
from everstep.sampling.combined import CombinedLoader
from everstep.strategies.base import moved

if TYPE_CHECKING:
    from everstep.trainer import Trainer


class LightningDataModule(Hyperparameters):
    """Override what you need; each *_dataloader returns a DataLoader, or a list, tuple or dict of them."""

    prepare_data_per_node = True  # False: prepare_data on one process of the whole run
    trainer: "Trainer | None" = None  # of the latest call

    def __init__(self) -> None:
        seed.ensure_seeded()

    @classmethod
    def from_datasets(
        cls,
        train_dataset: "Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]] | None" = None,
        val_dataset: "Dataset[Any] | Sequence[Dataset[Any]] | None" = None,
        test_dataset: "Dataset[Any] | Sequence[Dataset[Any]] | None" = None,
        predict_dataset: "Dataset[Any] | Sequence[Dataset[Any]] | None" = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> "LightningDataModule":
        """A datamodule with a loader around each dataset; the training one is shuffled, unless it is a stream."""

        def loader(dataset: Any, shuffle: bool) -> Any:
            if isinstance(dataset, Mapping):
                return {name: loader(part, shuffle) for name, part in dataset.items()}
            if isinstance(dataset, Sequence) and not isinstance(dataset, Dataset):
                return [loader(part, shuffle) for part in dataset]
            shuffle = shuffle and not isinstance(dataset, IterableDataset)
            return DataLoader(dataset, batch_size, shuffle, num_workers=num_workers, pin_memory=_has_cuda())

        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        methods = {
            f"{name}_dataloader": lambda self, name=name: loader(given[name], shuffle=name == "train")
            for name in given
            if given[name] is not None
        }
        return type(cls.__name__, (cls,), methods)(**datamodule_kwargs)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        """How many samples each stage's loaders have."""
        stages = {"Train": "train", "Validation": "val", "Test": "test", "Predict": "predict"}
        return "\n".join(f"{{{stage} dataloader: {self._sizes(name)}}}" for stage, name in stages.items())

    def _sizes(self, stage: str) -> str:
        try:
            loaders = getattr(self, f"{stage}_dataloader")()
        except Exception:  # its data is not there before prepare_data and setup, whatever it says of that
            loaders = None
        if isinstance(loaders, CombinedLoader):
            loaders = loaders.flattened
        if not isinstance(loaders, list | tuple | Mapping):
            return "None" if loaders is None else _size(loaders)
        parts = loaders.items() if isinstance(loaders, Mapping) else enumerate(loaders, start=1)
        return " ; ".join(f"{name}. {_size(loader)}" for name, loader in parts) or "None"

    def prepare_data(self) -> None:
        """Download, tokenize …: on one process of each node, before `setup`. Set no attributes here."""

    def setup(self, stage: str | None = None) -> None:
        """In every process. `stage`: fit, validate, test or predict."""

    def teardown(self, stage: str | None = None) -> None:
        """In every process, after the Trainer call."""

    def train_dataloader(self) -> Any:
        """A DataLoader for fit, or a list, tuple or dict of them, which are read together."""

    def val_dataloader(self) -> Any:
        """A DataLoader, or a list or dict of them, for validation."""

    def test_dataloader(self) -> Any:
        """A DataLoader, or a list or dict of them, for test."""

    def predict_dataloader(self) -> Any:
        """A DataLoader, or a list or dict of them, for predict."""

    # Hooks; where they are overridden they stand in for the module's.

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device."""
        return moved(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, as hooks and steps will get it."""
        return batch

    def on_exception(self, exception: BaseException) -> None:
        """A Trainer call ends by an exception, which goes on after this."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall hold of it, as tensors and plain data; comes back in `load_state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = None, hparams_file: None = None,
        weights_only: bool | None = None, **kwargs: Any,
    ) -> Self:  # fmt: skip
        """One as it was saved, with the hyper-parameters in the file; `kwargs` win over them. Arguments as of
        LightningModule.load_from_checkpoint.

        Raises:
            ConfigurationError: there is no such file, it needs unpickling, or an argument of __init__ is missing.
        """
        from everstep.checkpoint import ckpt

        refuse_file(cls, hparams_file)
        ckpt.refuse_unpickling(weights_only)
        checkpoint = ckpt.read(checkpoint_path, map_location)
        datamodule: Self = build(cls, checkpoint, "datamodule", kwargs)
        if cls.__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[cls.__qualname__])
        return datamodule


def _size(loader: Any) -> str:
    try:
        return f"size={len(getattr(loader, 'dataset', loader))}"
    except TypeError:  # a stream
        return "size=NA"


def _has_cuda() -> bool:
    return torch.cuda.is_available()
