"""In which number format a step computes. The base class is float32, and works."""

from everstep.precision.base import Precision

__all__ = ["Precision"]
