"""What a device can do. The base class is the CPU, and works."""

from collections.abc import Sequence
from typing import Any

import torch

from everstep.errors import ConfigurationError


class Accelerator:
    """The seam between the runtime and devices. Another accelerator overrides what differs from a CPU."""

    name = "cpu"
    backend = "gloo"  # of torch.distributed

    @classmethod
    def count(cls) -> int:
        """Devices of this kind that this process sees; 0: the accelerator cannot be used here."""
        return 1

    @classmethod
    def missing(cls) -> str:
        """Why `count` is 0 and what would change it; part of an error message."""
        return "there is always a CPU"

    def device(self, index: int) -> torch.device:
        """The device number `index`, 0 ..: a rank's place among the devices that its node uses."""
        return torch.device("cpu")

    def activate(self, device: torch.device) -> None:
        """Make it this process's default, before the first tensor is put there."""

    def synchronize(self, device: torch.device) -> None:
        """Wait until the device has done what it was given."""

    def flush(self) -> None:
        """Run what has only been recorded so far, on devices that compute lazily: after each step and before a save."""

    def stats(self, device: torch.device) -> dict[str, float]:
        """What there is to know of the device right now: bytes in use and the like."""
        return {}

    def default_ranks(self) -> int:
        """Ranks of a node for devices="auto": one per device, but a single one for all cores of a CPU."""
        return 1

    def parse(self, devices: int | str | Sequence[int]) -> list[int]:
        """The indices that `Trainer(devices=…)` means.

        Args:
            devices: a number of devices; indices in a list or as "0,2"; "auto"; -1 or "-1" for all.

        Raises:
            ConfigurationError: it is none of these, or there are not so many.
        """
        wanted = self._wanted(devices)
        if wanted is None:
            raise ConfigurationError(
                f'devices={devices!r}: it has to be a number of devices, a list of their indices, "auto", or -1 for all'
            )
        self._check(wanted, devices)
        return wanted

    def _wanted(self, devices: Any) -> list[int] | None:
        if isinstance(devices, str):
            text = devices.strip()
            if text == "auto":
                return list(range(self.default_ranks()))
            try:
                numbers = [int(part) for part in text.split(",") if part.strip()]
            except ValueError:
                return None
            # "2" is a number of devices, "2," and "0,2" are indices.
            devices = numbers if "," in text else numbers[0] if numbers else None
        if isinstance(devices, bool) or devices is None:
            return None
        if isinstance(devices, int):
            if devices == -1:
                return list(range(self.count()))
            return list(range(devices)) if devices > 0 else None
        if isinstance(devices, list | tuple | range) and devices:
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in devices):
                return None
            return list(devices) if len(set(devices)) == len(devices) else None
        return None

    def _check(self, wanted: list[int], devices: Any) -> None:
        """A CPU holds any number of ranks."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
