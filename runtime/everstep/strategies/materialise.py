"""Shards (DTensors) cut from whole tensors, and layers from the meta device given their values."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from everstep.errors import ConfigurationError


def is_sharded(tensor: Any) -> bool:
    """A DTensor, told without importing what defines it."""
    return hasattr(tensor, "device_mesh")


def shard_like(whole: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, divided as `like` is; no communication."""
    if not is_sharded(like) or is_sharded(whole):
        return whole
    if whole.shape != like.shape:
        return whole  # load_state_dict will name it
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    part = part.to(like.to_local().device, copy=True).contiguous()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def materialise(module: nn.Module, device: torch.device) -> None:
    """Give the layers that were made on the meta device their weights: each by its own `reset_parameters`.

    One layer at a time is whole, as one process would have drawn it (rank 0's draw counts), then cut to what this rank
    keeps of it.

    Raises:
        ConfigurationError: a layer with parameters on the meta device has no reset_parameters.
    """
    layers = [layer for layer in module.modules() if any(t.is_meta for t in _own_tensors(layer).values())]
    for layer in layers:
        if not hasattr(layer, "reset_parameters"):
            raise ConfigurationError(
                f"{type(layer).__name__} was made on the meta device and has no reset_parameters(): define it, so that "
                f"{', '.join(_own_tensors(layer))} can be given values once this rank's part of them is known"
            )
    for layer in layers:
        layer.to_empty(device=device, recurse=False)
        kept = _own_tensors(layer)
        for name, tensor in kept.items():
            if is_sharded(tensor):
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                layer._parameters[name] = nn.Parameter(whole, tensor.requires_grad)
        layer.reset_parameters()  # type: ignore[operator]
        for name, tensor in kept.items():
            drawn = (layer._parameters if name in layer._parameters else layer._buffers)[name]
            assert drawn is not None
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.broadcast(drawn.data, src=0)
            if is_sharded(tensor):
                with torch.no_grad():
                    tensor.to_local().copy_(shard_like(drawn.data, tensor).to_local())  # type: ignore[attr-defined]
                layer._parameters[name] = tensor  # type: ignore[assignment]


def _own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {
        **{name: p for name, p in layer._parameters.items() if p is not None},
        **{name: b for name, b in layer._buffers.items() if b is not None},
    }
