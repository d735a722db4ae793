"""Which hooks a script has overridden."""

from typing import Any

from everstep.callbacks.base import Callback
from everstep.data import LightningDataModule
from everstep.module import LightningModule


def is_overridden(method_name: str, instance: object, parent: type[object] | None = None) -> bool:
    """Does the instance, or its class, define this method anew?

    Args:
        parent: the class that has the method as it comes; default: LightningModule, LightningDataModule or Callback.

    Raises:
        ValueError: the instance is none of these and no parent is given.
    """
    if parent is None:
        bases: tuple[type[Any], ...] = (LightningModule, LightningDataModule, Callback)
        parent = next((base for base in bases if isinstance(instance, base)), None)
    if parent is None:
        raise ValueError(f"{type(instance).__name__} is no module, datamodule or callback: give parent=…")
    mine = vars(instance).get(method_name) or getattr(type(instance), method_name, None)
    return mine is not None and mine is not getattr(parent, method_name, None)
