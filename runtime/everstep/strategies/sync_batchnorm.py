"""Batch norm over the batches of all ranks. torch's own layer does it on CUDA only; this one on any device.

A layer keeps its class, its names and its state: only its own `forward` is another one. It normalises with statistics
of the global batch in training, and as always in evaluation.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from everstep.strategies.parallel import summed


def synchronise_batchnorm(module: nn.Module, group: Any = None) -> None:
    """In place, every batch norm in the module. `group`: of processes; default: all."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
            layer.forward = partial(_forward, layer, group)  # type: ignore[method-assign]


def _forward(layer: _BatchNorm, group: Any, x: Tensor) -> Tensor:
    if not layer.training or not dist.is_initialized():
        usual: Tensor = type(layer).forward(layer, x)
        return usual
    dims = [0, *range(2, x.dim())]
    shape = [1, -1, *([1] * (x.dim() - 2))]
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = values.new_tensor([values.numel() / values.shape[1]])
    total = summed(torch.cat([values.sum(dims), count]), group)
    n = total[-1]
    mean = total[:-1] / n
    centred = values - mean.view(shape)
    # Around the common mean, in a second round: a difference of large squares would lose its digits.
    variance = summed(centred.square().sum(dims), group) / n
    if layer.track_running_stats and layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        part = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        with torch.no_grad():
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), part)
            layer.running_var.lerp_((variance * n / (n - 1).clamp(min=1)).to(layer.running_var.dtype), part)
    result: Tensor = centred * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        result = result * layer.weight.view(shape) + layer.bias.view(shape)
    return result.to(x.dtype)
