"""Google TPUs through torch_xla, which is imported when a TPU is used and not before.

torch_xla stops at torch 2.9 and does not mix with elastic agents: on TPUs one launcher per host runs a fixed slice.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from everstep.accelerators.base import Accelerator
from everstep.errors import ConfigurationError


class TPUAccelerator(Accelerator):
    """One rank per chip; they talk through XLA's own collectives."""

    name = "tpu"
    backend = "xla"

    @classmethod
    def count(cls) -> int:
        if find_spec("torch_xla") is None:
            return 0
        return int(import_module("torch_xla.runtime").addressable_device_count())

    @classmethod
    def missing(cls) -> str:
        if find_spec("torch_xla") is None:
            return "torch_xla is not installed: pip install 'torch~=2.9.0' 'torch_xla[tpu]~=2.9.0'"
        return "torch_xla sees no TPU: check that this host belongs to a slice"

    def default_ranks(self) -> int:
        return max(1, self.count())

    def device(self, index: int) -> torch.device:
        found: torch.device = import_module("torch_xla").device(index)
        return found

    def activate(self, device: torch.device) -> None:
        import_module("torch_xla.distributed.xla_backend")  # registers the backend

    def synchronize(self, device: torch.device) -> None:
        import_module("torch_xla").sync(wait=True)

    def flush(self) -> None:
        import_module("torch_xla").sync(wait=False)

    def stats(self, device: torch.device) -> dict[str, float]:
        memory = import_module("torch_xla.core.xla_model").get_memory_info(device)
        return {name: float(value) for name, value in memory.items()}

    def _check(self, wanted: list[int], devices: Any) -> None:
        there = self.count()
        if len(wanted) not in (1, there):
            raise ConfigurationError(f"devices={devices!r}: a TPU host runs 1 chip or all of its {there}")
