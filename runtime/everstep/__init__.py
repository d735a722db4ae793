"""Everstep's runtime: `import everstep as L`. What runs in the pods, and what users import.

Names load when they are first used (PEP 562): importing this package, or a sub-module that needs no torch, loads none.
"""

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from everstep import vision

__version__ = "0.1.0"

#: Public name -> the module that defines it.
_HOME = {
    "Callback": "everstep.callbacks",
    "Fabric": "everstep.fabric",
    "LightningDataModule": "everstep.data",
    "LightningModule": "everstep.module",
    "Trainer": "everstep.trainer",
    "seed_everything": "everstep.seed",
}

__all__ = ["Callback", "Fabric", "LightningDataModule", "LightningModule", "Trainer", "__version__", "seed_everything"]

if TYPE_CHECKING:
    from everstep.callbacks import Callback
    from everstep.data import LightningDataModule
    from everstep.fabric import Fabric
    from everstep.module import LightningModule
    from everstep.seed import seed_everything
    from everstep.trainer import Trainer


#: Sub-packages that are attributes without having been imported, as Lightning's are: `pl.callbacks.ModelCheckpoint`.
_PARTS = ("accelerators", "callbacks", "loggers", "metrics", "plugins", "profilers", "strategies", "utilities")

vision.watch()


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return _load(f"everstep.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'everstep' has no attribute {name!r}")
    value = getattr(_load(_HOME[name]), name)
    globals()[name] = value
    return value


def _load(module: str) -> ModuleType:
    """Without looking for garbage: what an import makes stays, and torch alone makes a quarter of a million objects."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted(__all__)
