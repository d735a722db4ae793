"""Where the loaders of a Trainer call come from, and what counts as one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from everstep.data import LightningDataModule
from everstep.errors import ConfigurationError
from everstep.module import LightningModule
from everstep.sampling.combined import CombinedLoader, Mode
from everstep.trainer.hooks import overridden


class Loaders:
    """Of one Trainer call: those that were given, else the datamodule's, else the module's. Made when asked for."""

    def __init__(
        self, module: LightningModule, datamodule: LightningDataModule | None, given: Mapping[str, Any]
    ) -> None:
        """`given`: by the name of the method that they stand for; None: not given."""
        self._module, self._datamodule = module, datamodule
        self._given = {method: loaders for method, loaders in given.items() if loaders is not None}

    def defined(self, method: str) -> bool:
        return method in self._given or self._owner(method) is not None

    def get(self, method: str) -> Any:
        """The loader, or a list, tuple or dict of loaders; None: there is none."""
        if method in self._given:
            return self._given[method]
        owner = self._owner(method)
        return getattr(owner, method)() if owner is not None else None

    def need(self, method: str) -> Any:
        """
        Raises:
            ConfigurationError: there is none.
        """
        found = self.get(method)
        if found is None:
            raise ConfigurationError(
                f"there is no {method}: give loaders to the Trainer call, or define {method} in the module or the "
                "datamodule (and return it)"
            )
        return found

    def _owner(self, method: str) -> Any:
        if self._datamodule is not None and overridden(self._datamodule, method):
            return self._datamodule
        return self._module if overridden(self._module, method) else None


def combined(loaders: Any, mode: Mode, what: str) -> Any:
    """A loader as it is; of a list, tuple or dict of loaders a CombinedLoader. `what`: for messages, such as "test".

    Raises:
        ConfigurationError: a leaf is no loader; a list of batches is not one either.
    """
    if isinstance(loaders, CombinedLoader):
        _check(loaders.iterables, what, "")
        return loaders
    _check(loaders, what, "")
    return CombinedLoader(loaders, mode) if isinstance(loaders, list | tuple | Mapping) else loaders


def apart(loader: Any) -> Any:
    """The loader, or the list, tuple or dict of those that it combines: as scripts find them at the Trainer."""
    return loader.iterables if isinstance(loader, CombinedLoader) else loader


def _check(loaders: Any, what: str, inside: str) -> None:
    if isinstance(loaders, list | tuple | Mapping):
        if not loaders:
            raise ConfigurationError(f"the {what} loader is an empty {type(loaders).__name__}: it has no loaders")
        kind = "dict" if isinstance(loaders, Mapping) else "list"
        for part in loaders.values() if isinstance(loaders, Mapping) else loaders:
            _check(part, what, kind)
        return
    if isinstance(loaders, Dataset) and not isinstance(loaders, IterableDataset):
        raise ConfigurationError(
            f"the {what} loader is a {type(loaders).__name__}, a Dataset: give DataLoader(dataset, batch_size=…); if "
            "its items are whole batches, DataLoader(dataset, batch_size=None)"
        )
    batch = isinstance(loaders, torch.Tensor | str | bytes) or hasattr(loaders, "__array__")
    if not batch and (hasattr(loaders, "__iter__") or hasattr(loaders, "__getitem__")):
        return
    name = type(loaders).__name__
    if inside:
        raise ConfigurationError(
            f"the {what} loader is a {inside} with a {name} inside: a {inside} means several loaders, and a {name} is "
            "none. For a list of batches give DataLoader(batches, batch_size=None)"
        )
    article = "an" if name[0] in "aeio" else "a"
    raise ConfigurationError(
        f"the {what} loader is {article} {name}: give a DataLoader, or another iterable of batches"
    )
