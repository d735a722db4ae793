"""How long what takes. The base class measures nothing, and costs nothing."""

from everstep.profilers.base import Profiler

__all__ = ["Profiler"]
