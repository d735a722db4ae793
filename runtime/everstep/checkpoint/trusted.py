"""Unpickling, for `everstep checkpoint convert --trust` alone: it runs code that is in the file.

What comes out is plain data; objects that are none are left out and named.
"""

import io
import pickle
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from everstep.checkpoint import ckpt
from everstep.errors import ConfigurationError


def unpickled(place: str) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint as plain data, and what is not in it, with its place.

    Raises:
        ConfigurationError: there is no such file, or it is no checkpoint.
    """
    with tempfile.TemporaryFile() as file:
        try:
            ckpt.fetch(place, file)
        except FileNotFoundError:
            raise ConfigurationError(ckpt.missing(place)) from None
        try:
            loaded = torch.load(file, "cpu", weights_only=False, pickle_module=_Pickle("pickle"))
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{place} cannot be unpickled: {error}") from error
    if not isinstance(loaded, Mapping) or "state_dict" not in loaded:
        raise ConfigurationError(f'{place} is no checkpoint of a Trainer: it has no "state_dict"')
    left_out: list[str] = []
    return _plain(loaded, "", left_out), left_out


class _Unknown(dict[Any, Any]):
    """Stands for a class that cannot be imported here."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (_Unknown,), {"__module__": module})


class _Pickle(ModuleType):
    """The pickle module, as torch.load takes one, with a lenient Unpickler."""

    Unpickler = _Unpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **how: Any) -> Any:
        return _Unpickler(file, **how).load()

    @staticmethod
    def loads(data: bytes, **how: Any) -> Any:
        return _Unpickler(io.BytesIO(data), **how).load()


_NOTHING = object()


def _plain(value: Any, place: str, left_out: list[str]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, torch.Tensor | torch.dtype | torch.device | np.ndarray):
        return value
    kinds: tuple[Any, ...] = (bool, int, float, str, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)  # not the file's own class
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping) and not (isinstance(value, _Unknown) and not value):
        pairs = ((key, _plain(item, f"{place}/{key}", left_out)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not _NOTHING}
    if isinstance(value, Sequence | set | frozenset):
        items = [_plain(item, f"{place}/{number}", left_out) for number, item in enumerate(value)]
        kept = [item for item in items if item is not _NOTHING]
        return tuple(kept) if isinstance(value, tuple) else kept
    left_out.append(f"{place.lstrip('/')} (a {type(value).__module__}.{type(value).__qualname__})")
    return _NOTHING
