"""64-true, 16-true, bf16-true: parameters, inputs and new tensors all in one number format."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from everstep.precision.base import Precision, cast_floats, default_dtype


class TruePrecision(Precision):
    """
    Args:
        name: "64-true", "16-true" or "bf16-true".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}[name]

    def convert_module(self, module: nn.Module) -> None:
        module.to(self.dtype)

    def init_context(self) -> AbstractContextManager[Any]:
        return default_dtype(self.dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        return default_dtype(self.dtype)

    def convert_input(self, batch: Any) -> Any:
        return cast_floats(batch, self.dtype)
