"""This process among the ranks: what Trainer and Fabric both tell of it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from everstep.accelerators import Accelerator
from everstep.strategies.base import Strategy


class Rank:
    """Whoever has a strategy."""

    strategy: Strategy

    @property
    def accelerator(self) -> Accelerator:
        """What kind of device this rank computes on."""
        return self.strategy.accelerator

    @property
    def global_rank(self) -> int:
        """Of this process in the run, 0 …."""
        return self.strategy.rank

    @property
    def local_rank(self) -> int:
        """Among those of this node."""
        return self.strategy.environment.local_rank

    @property
    def node_rank(self) -> int:
        """Of this process's node, 0 …."""
        return self.strategy.environment.node_rank

    @property
    def world_size(self) -> int:
        """Processes in the run."""
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Is this rank 0?"""
        return self.strategy.rank == 0

    def init_module(self, empty_init: bool | None = None) -> AbstractContextManager[Any]:
        """Layers that are made inside are in the precision, on this rank's device; `empty_init`: without memory, which
        a Trainer's call or Fabric's `setup` gives them."""
        device = torch.device("meta") if empty_init else self.strategy.root_device
        return _both(self.strategy.precision.init_context(), device)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*args, **kwargs)


@contextmanager
def _both(context: AbstractContextManager[Any], device: torch.device) -> Iterator[None]:
    with context, device:
        yield
