"""Norms of gradients."""

import torch
from torch import Tensor, nn


def grad_norm(module: nn.Module, norm_type: float | int | str = 2.0, group_separator: str = "/") -> dict[str, Tensor]:
    """`grad_2.0_norm/<parameter>` for each parameter with a gradient, and `grad_2.0_norm_total`. On their device."""
    norm_type = float(norm_type)
    if norm_type <= 0:
        raise ValueError(f"norm_type is {norm_type}: it has to be positive, or inf")
    norms = {
        f"grad_{norm_type}_norm{group_separator}{name}": torch.linalg.vector_norm(parameter.grad, norm_type)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())), norm_type)
        norms[f"grad_{norm_type}_norm_total"] = total
    return norms
