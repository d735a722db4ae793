"""Which layers a policy means: ours, and those of torch.distributed.fsdp.wrap as torch itself understands them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn
from torch.distributed.fsdp import wrap

from everstep.errors import ConfigurationError
from everstep.strategies.activation_checkpointing import chosen


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 8)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Block())


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def as_torch_wraps(policy: Callable[..., bool]) -> set[str]:
    """The names of the layers, with those of the wrappers taken out."""
    whole, _ = wrap._recursive_wrap(Model(), policy, Wrapped, set(), set(), only_wrap_children=True)
    names = (name for name, layer in whole.named_modules() if isinstance(layer, Wrapped))
    return {".".join(part for part in name.split(".") if part != "module") for name in names}


@pytest.mark.parametrize(
    "policy",
    [
        *(partial(wrap.size_based_auto_wrap_policy, min_num_params=least) for least in (10, 40, 60, 100, 300, 10_000)),
        partial(wrap.transformer_auto_wrap_policy, transformer_layer_cls={Block}),
        partial(wrap.lambda_auto_wrap_policy, lambda_fn=lambda layer: isinstance(layer, nn.Linear)),
        wrap.ModuleWrapPolicy({Block, nn.MultiheadAttention}),
    ],
)
def test_torchs_policies_mean_what_torch_wraps(policy: Any) -> None:
    model = Model()
    names = {layer: name for name, layer in model.named_modules()}
    assert {names[layer] for layer in chosen(model, policy)} == as_torch_wraps(policy)


def test_classes_or_a_function_of_a_layer() -> None:
    model = Model()
    blocks = [*model.blocks, model.head[2]]
    for policy in (Block, {Block}, lambda layer: isinstance(layer, Block)):
        assert set(chosen(model, policy)) == set(blocks)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a CustomPolicy is no policy: give classes of layers, or a function"):
        chosen(Model(), wrap.CustomPolicy(lambda layer: True))  # type: ignore[arg-type]
