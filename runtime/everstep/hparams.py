"""Hyper-parameters: the arguments of a module's or datamodule's __init__, kept in checkpoints."""

import copy
import dataclasses
import inspect
import os
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from everstep.errors import ConfigurationError


class AttributeDict(dict[str, Any]):
    """A dict whose items are attributes as well; dicts inside it too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for key, value in self.items():
            if type(value) is dict:
                self[key] = AttributeDict(value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no hyper-parameter {name!r}; there are {sorted(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __repr__(self) -> str:
        width = max((len(str(key)) for key in self), default=0) + 3
        return "\n".join(f'"{key}":'.ljust(width) + f" {_printed(self[key])}" for key in sorted(self, key=str))


def _printed(value: Any) -> Any:
    return {key: _printed(part) for key, part in value.items()} if isinstance(value, AttributeDict) else value


class Hyperparameters:
    """What LightningModule and LightningDataModule share: `save_hyperparameters` and loading by class."""

    _hparams: Any = None
    _hparams_initial: Any = None
    _hparams_name: str | None = None  # of the one argument that holds them all, or "kwargs"
    _log_hyperparams = False  # also to the loggers

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Remember the arguments of `__init__`, where this is called, as `self.hparams`, and in checkpoints.

        Args:
            args: names of arguments, if not all; or one dict, Namespace or other mapping that holds them.
            ignore: names to leave out. Modules and other objects that are no plain data are not written to
                checkpoints anyway: `load_from_checkpoint` has to be given them.
            frame: of the `__init__`, if it is not found by itself.
            logger: send them to the loggers too.

        Raises:
            ConfigurationError: a name is no argument of `__init__`, or what is given is no mapping.
        """
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        given = self._init_arguments(frame or inspect.currentframe())
        objects = [arg for arg in args if not isinstance(arg, str)]
        if objects:
            values = vars(objects[0]) if isinstance(objects[0], Namespace) else objects[0]
            if len(args) > 1 or not isinstance(values, Mapping):
                raise ConfigurationError(
                    f"save_hyperparameters got a {type(objects[0]).__name__}: give names of arguments, or one mapping"
                )
            name = next((name for name, value in given.items() if value is objects[0]), None)
        else:
            missing = [arg for arg in args if arg not in given]
            if missing:
                raise ConfigurationError(
                    f"save_hyperparameters({missing[0]!r}): {type(self).__name__}.__init__ has no such argument; it "
                    f"has {sorted(given)}"
                )
            values = {name: value for name, value in given.items() if not args or name in args}
            name = "kwargs"
        if type(values) is dict or ignored:
            values = AttributeDict({key: value for key, value in values.items() if key not in ignored})
        if isinstance(values, dict) and isinstance(self._hparams, dict):  # a base class has saved some before
            for key in ignored:
                self._hparams.pop(key, None)
            self._hparams.update(values)
        else:
            self._hparams = values
        self._hparams_name = name if self._hparams else None
        self._log_hyperparams = logger
        self._hparams_initial = _copied(self._hparams)

    @property
    def hparams(self) -> Any:
        """What `save_hyperparameters` has remembered: a dict with attributes, or the mapping it was given."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @property
    def hparams_initial(self) -> Any:
        """A copy of what they were when they were saved."""
        return AttributeDict() if self._hparams_initial is None else _copied(self._hparams_initial)

    def _init_arguments(self, frame: FrameType | None) -> dict[str, Any]:
        """Of this object's `__init__`s that are running; those of the most derived class win."""
        if dataclasses.is_dataclass(self):
            return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        arguments: dict[str, Any] = {}
        while frame is not None:
            names, _, extra, values = inspect.getargvalues(frame)
            if frame.f_code.co_name == "__init__" and names and values[names[0]] is self:
                arguments |= {name: values[name] for name in names[1:]}
                arguments |= values.get(extra, {}) if extra else {}
            frame = frame.f_back
        return arguments


#: Keys of a checkpoint, for the module's and the datamodule's.
_KEYS = {"module": ("hparams_name", "hyper_parameters"),
         "datamodule": ("datamodule_hparams_name", "datamodule_hyper_parameters")}  # fmt: skip


def dump_hparams(checkpoint: dict[str, Any], module: Hyperparameters, datamodule: Hyperparameters | None) -> None:
    """Add the hyper-parameters of both to a checkpoint: plain data only. What is none is named in a warning."""
    for kind, owner in (("module", module), ("datamodule", datamodule)):
        if owner is None or not owner.hparams:
            continue
        values, left_out = {}, {}
        for key, value in owner.hparams.items():
            try:
                values[key] = _plain(value)
            except TypeError:
                left_out[key] = f"{type(value).__module__}.{type(value).__qualname__}"
        name_key, values_key = _KEYS[kind]
        checkpoint[name_key], checkpoint[values_key] = owner._hparams_name, values
        if left_out:
            checkpoint["everstep"][f"{kind}_hparams_left_out"] = left_out
            what = ", ".join(f"{key} (a {of})" for key, of in left_out.items())
            warnings.warn(
                f"hyper-parameters of {type(owner).__name__} that are no plain data are not in its checkpoints: {what}."
                " Give them to load_from_checkpoint, and leave them out by save_hyperparameters(ignore="
                f"{list(left_out)})",
                stacklevel=2,
            )


def refuse_file(cls: type[Any], hparams_file: Any) -> None:
    """
    Raises:
        ConfigurationError: hyper-parameters are to come from a file of their own.
    """
    if hparams_file is not None:
        raise ConfigurationError(
            f"hparams_file={str(hparams_file)!r}: hyper-parameters are in the checkpoint; what is not, give as an "
            f"argument: {cls.__name__}.load_from_checkpoint(path, width=3)"
        )


def build(cls: type[Any], checkpoint: Mapping[str, Any], kind: str, given: Mapping[str, Any]) -> Any:
    """An object of `cls`, with the hyper-parameters of the checkpoint; those given win.

    Raises:
        ConfigurationError: an argument is missing; says why, and what to give.
    """
    name_key, values_key = _KEYS[kind]
    stored = AttributeDict(checkpoint.get(values_key) or {})
    parameters = inspect.signature(cls.__init__).parameters
    name = checkpoint.get(name_key) or "kwargs"
    arguments: dict[str, Any]
    if name in parameters and parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
        inside = {key: value for key, value in given.items() if key not in parameters}
        arguments = {name: AttributeDict({**stored, **inside})}
    else:
        arguments = dict(stored)
    arguments |= given
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {key: value for key, value in arguments.items() if key in parameters}
    missing = [
        key
        for key, parameter in list(parameters.items())[1:]
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and key not in arguments
    ]
    if missing:
        left_out = checkpoint.get("everstep", {}).get(f"{kind}_hparams_left_out", {})
        why = f" ({missing[0]} is a {left_out[missing[0]]}, which is no plain data)" if missing[0] in left_out else ""
        raise ConfigurationError(
            f"{cls.__name__} needs {', '.join(missing)}, which the checkpoint does not hold{why}. Give it: "
            f"{cls.__name__}.load_from_checkpoint(path, {missing[0]}=…), or keep it in the file from now on: "
            "self.save_hyperparameters() in __init__"
        )
    return cls(**arguments)


def _plain(value: Any) -> Any:
    """
    Raises:
        TypeError: it is not made of numbers, strings, tensors, and lists, tuples and mappings of them.
    """
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, bool | int | float | bytes | torch.Tensor | torch.dtype | torch.device):
        return value.detach() if isinstance(value, torch.Tensor) else value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key if type(key) is int else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} is no plain data")


def _copied(values: Any) -> Any:
    if isinstance(values, AttributeDict):  # modules are large, and training changes them
        return AttributeDict({k: v if isinstance(v, nn.Module) else copy.deepcopy(v) for k, v in values.items()})
    return copy.deepcopy(values)
