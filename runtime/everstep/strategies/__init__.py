"""How a module trains on the ranks there are. The base class is one device, and works."""

from everstep.strategies.base import Strategy
from everstep.strategies.ddp import DDPStrategy

__all__ = ["DDPStrategy", "Strategy"]
