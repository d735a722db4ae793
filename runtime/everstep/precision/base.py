"""32-true: what the module's parameters are in, nothing scaled, nothing cast."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Precision:
    """The seam between the loop and number formats. Another precision overrides what differs."""

    name = "32-true"

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A training, validation, test or predict step under this precision; called once per Trainer call."""
        return step

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
