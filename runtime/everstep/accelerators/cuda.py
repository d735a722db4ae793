"""NVIDIA (and, through the same torch interface, AMD) GPUs."""

from typing import Any

import torch

from everstep.accelerators.base import Accelerator
from everstep.errors import ConfigurationError


class CUDAAccelerator(Accelerator):
    """One rank per device; they talk over NCCL."""

    name = "cuda"
    # Both: what a strategy agrees on (flags, texts) stays on the CPU and needs no round trip to the device.
    backend = "cpu:gloo,cuda:nccl"

    @classmethod
    def count(cls) -> int:
        return torch.cuda.device_count()  # by NVML: it does not initialise CUDA, so that a fork stays possible

    @classmethod
    def missing(cls) -> str:
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA: install a CUDA build (pytorch.org/get-started)"
        return "torch sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"

    def default_ranks(self) -> int:
        return max(1, self.count())

    def device(self, index: int) -> torch.device:
        return torch.device("cuda", index)

    def activate(self, device: torch.device) -> None:
        torch.cuda.set_device(device)

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def stats(self, device: torch.device) -> dict[str, float]:
        return {name: float(value) for name, value in torch.cuda.memory_stats(device).items()}

    def _check(self, wanted: list[int], devices: Any) -> None:
        there = self.count()
        if wanted and max(wanted) >= there:
            raise ConfigurationError(
                f"devices={devices!r} needs GPU {max(wanted)}, but this machine has {there} "
                f"(0 to {there - 1}): give at most devices={there}, or -1 for all"
                if there
                else f"devices={devices!r}: {self.missing()}"
            )
