"""bf16-mixed and 16-mixed: parameters in float32, the heavy operations in half of it, by torch.autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from everstep.precision.base import Precision


class MixedPrecision(Precision):
    """bf16-mixed. bfloat16 has float32's range: nothing needs to be scaled."""

    name = "bf16-mixed"
    compute_dtype: torch.dtype | None = torch.bfloat16

    def __init__(self, device: str = "cpu") -> None:
        """
        Args:
            device: type of the device that computes.
        """
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=self.compute_dtype)


class ScaledPrecision(MixedPrecision):
    """16-mixed. Small gradients vanish in float16, so the loss is scaled up, and gradients down before they are used.

    A step whose gradients overflow is skipped, and the scale lowered. Finding out costs a look at the device per step.
    """

    name = "16-mixed"
    compute_dtype = torch.float16

    def __init__(self, device: str = "cuda", scaler: torch.amp.GradScaler | None = None) -> None:
        """
        Args:
            scaler: with other than torch's own initial scale and growth.
        """
        super().__init__(device)
        self.scaler = scaler or torch.amp.GradScaler(device)
        self._unscaled: set[int] = set()  # optimizers whose gradients have their true size in the present step

    def scale(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.scale(loss).backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) not in self._unscaled:
            self._unscaled.add(id(optimizer))
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        result = closure() if closure is not None else None  # GradScaler takes none
        self.scaler.step(optimizer)
        self.scaler.update()
        self._unscaled.discard(id(optimizer))
        return result

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)
