"""This process among the ranks: what Trainer and Fabric both tell of it."""

from typing import Any

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
        return self.strategy.rank

    @property
    def local_rank(self) -> int:
        """Among those of this node."""
        return self.strategy.environment.local_rank

    @property
    def node_rank(self) -> int:
        return self.strategy.environment.node_rank

    @property
    def world_size(self) -> int:
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.strategy.rank == 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*args, **kwargs)
