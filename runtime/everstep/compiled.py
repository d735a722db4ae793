"""A module that was given as torch.compile(module): its steps run compiled, everything else is the module itself."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from everstep.module import LightningModule


def uncompiled(model: Any) -> Any:
    """The module inside. Its steps are compiled from now on as torch.compile was told."""
    module = getattr(model, "_orig_mod", None)
    if module is None:
        return model
    object.__setattr__(module, "_compile", model.dynamo_ctx)
    return module


def compiled(module: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the module, compiled if it was given so. self.log inside is a break in the graph, not a part of it."""
    # Where nobody has imported the compiler nothing is compiled, and importing it takes seconds.
    if "torch._dynamo" in sys.modules and isinstance(module, LightningModule) and "log" not in vars(module):
        object.__setattr__(module, "log", torch.compiler.disable(module.log))  # type: ignore[no-untyped-call]
    compile_ = vars(module).get("_compile")
    return compile_(step) if compile_ is not None else step
