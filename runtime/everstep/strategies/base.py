"""One process, one device: every collective is the identity."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from everstep.environment import Environment


class Strategy:
    """The seam between the loop and the ranks. A strategy overrides what differs from a single device."""

    name = "single_device"

    def __init__(self) -> None:
        self.environment = Environment()

    def connect(self, environment: Environment) -> None:
        """Join the other ranks. Called at the start of each Trainer call; the first does the work."""
        self.environment = environment

    @property
    def rank(self) -> int:
        return 0

    @property
    def world_size(self) -> int:
        return 1

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        """The training step through whatever synchronises gradients."""
        return step

    def synchronise_gradients(self, now: bool) -> None:
        """Said before a forward whose gradients differ from the previous one's in being shared with the other ranks."""

    def align_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers (running statistics) of rank 0, so that evaluation is the same everywhere."""

    def reduce(self, tensor: Tensor, operation: Literal["sum", "min", "max"] = "sum") -> Tensor:
        """Over all ranks, in place; a collective."""
        return tensor

    def all_true(self, flag: bool) -> bool:
        """Does every rank say so? A collective."""
        return flag

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on all ranks; a collective."""
        return text

    def barrier(self) -> None:
        """Wait for all ranks."""

    def unwrap(self) -> None:
        """A fit has ended: let go of what `wrap` made."""
