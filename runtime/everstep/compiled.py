"""A module that was given as torch.compile(module): its steps run compiled, everything else is the module itself."""

from collections.abc import Callable
from typing import Any


def uncompiled(model: Any) -> Any:
    """The module inside. Its steps are compiled from now on as torch.compile was told."""
    module = getattr(model, "_orig_mod", None)
    if module is None:
        return model
    object.__setattr__(module, "_compile", model.dynamo_ctx)
    return module


def compiled(module: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the module, compiled if it was given so. self.log inside is a break in the graph, not a part of it."""
    compile_ = vars(module).get("_compile")
    return compile_(step) if compile_ is not None else step
