"""Layers that keep no activations: they compute their forward again in the backward. Memory for time."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

#: Which layers: some classes, or a function that says it of a layer.
Policy = type[nn.Module] | Iterable[type[nn.Module]] | Callable[[nn.Module], bool]


def chosen(module: nn.Module, policy: Policy) -> list[nn.Module]:
    """The sub-modules that a policy means, inner ones first."""
    if isinstance(policy, type):
        policy = {policy}
    if callable(policy):
        fits: Callable[[nn.Module], bool] = policy
    else:
        classes = tuple(policy)

        def fits(layer: nn.Module) -> bool:
            return isinstance(layer, classes)

    return [layer for layer in reversed(list(module.modules())) if layer is not module and fits(layer)]


def apply_activation_checkpointing(module: nn.Module, policy: Policy) -> None:
    """In place. A layer keeps its class and names: only its own `forward` is another one."""
    for layer in chosen(module, policy):
        if not isinstance(layer.forward, partial):  # not yet
            again: Any = partial(checkpoint, layer.forward, use_reentrant=False)
            layer.forward = again
