"""The CPU: what the base class is."""

from everstep.accelerators.base import Accelerator


class CPUAccelerator(Accelerator):
    """Any number of ranks may share it; they talk over gloo."""
