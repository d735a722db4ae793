"""Layers that keep no activations: they compute their forward again in the backward. Memory for time."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from everstep.errors import ConfigurationError

#: Which layers: some classes, a function that says it of a layer, or one of torch.distributed.fsdp.wrap's, with
#: (module, recurse, nonwrapped_numel).
Policy = type[nn.Module] | Iterable[type[nn.Module]] | Callable[..., bool]


def chosen(module: nn.Module, policy: Policy) -> list[nn.Module]:
    """The sub-modules that a policy means, inner ones first."""
    if isinstance(policy, type):
        policy = {policy}
    if callable(policy):
        if "recurse" in inspect.signature(policy).parameters:
            return _chosen_as_torch_does(module, policy)
        fits: Callable[[nn.Module], bool] = policy
    else:
        if not isinstance(policy, Iterable):
            raise ConfigurationError(
                f"a {type(policy).__name__} is no policy: give classes of layers, or a function of a layer"
            )
        classes = tuple(policy)

        def fits(layer: nn.Module) -> bool:
            return isinstance(layer, classes)

    return [layer for layer in reversed(list(module.modules())) if layer is not module and fits(layer)]


def _chosen_as_torch_does(root: nn.Module, policy: Callable[..., bool]) -> list[nn.Module]:
    """It is asked whether to look into a layer, then about the layer, with the numbers that its layers left to it."""
    layers: list[nn.Module] = []

    def numbers_taken(layer: nn.Module) -> int:
        numbers = sum(parameter.numel() for parameter in layer.parameters())
        if not policy(module=layer, recurse=True, nonwrapped_numel=numbers):
            return 0
        taken = sum(numbers_taken(child) for child in layer.children())
        if layer is root or not policy(module=layer, recurse=False, nonwrapped_numel=numbers - taken):
            return taken
        if layer not in layers:
            layers.append(layer)
        return numbers

    numbers_taken(root)
    return layers


def apply_activation_checkpointing(module: nn.Module, policy: Policy) -> None:
    """In place. A layer keeps its class and names: only its own `forward` is another one."""
    for layer in chosen(module, policy):
        if not isinstance(layer.forward, partial):  # not yet
            again: Any = partial(checkpoint, layer.forward, use_reentrant=False)
            layer.forward = again
