"""Logs batches, samples and operations a second, and how much of the device that is (MFU)."""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer

#: Dense operations a second of a device as its maker states them: (16-bit, 32-bit with TF32 off).
PEAK_FLOPS = {
    "h200": (989e12, 67e12), "h100 nvl": (835e12, 60e12), "h100 pcie": (756e12, 51e12), "h100": (989e12, 67e12),
    "b200": (2250e12, 80e12), "a100": (312e12, 19.5e12), "a10g": (70e12, 35e12), "a10": (125e12, 31.2e12),
    "l40s": (362e12, 91.6e12), "l40": (181e12, 90.5e12), "l4": (121e12, 30.3e12), "v100": (125e12, 15.7e12),
    "t4": (65e12, 8.1e12), "4090": (165e12, 82.6e12), "3090": (71e12, 35.6e12),
}  # fmt: skip


class ThroughputMonitor(Callback):
    """At log steps, over the last `window_size` of them, `train/…`: `device/batches_per_sec`, `device/samples_per_sec`,
    `device/items_per_sec` with a `length_fn`, `device/flops_per_sec` and `device/mfu` with `flops_per_batch`; the same
    of all ranks together without "device/". The device is waited for at log steps only.

    Args:
        batch_size_fn: batch -> its samples; default: as self.log weighs it.
        length_fn: batch -> its items, such as tokens.
        flops_per_batch: operations of one training step of this rank, or a function of the module that says; default:
            the module's own `flops_per_batch`. `torch.utils.flop_counter` counts them.
        available_flops: of the device in a second; default: known for common GPUs, by precision.
        window_size: log steps.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int] | None = None,
        length_fn: Callable[[Any], int] | None = None,
        flops_per_batch: float | Callable[["LightningModule"], float] | None = None,
        available_flops: float | None = None,
        window_size: int = 100,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if window_size < 2:
            raise ConfigurationError(f"ThroughputMonitor(window_size={window_size}): a rate needs two marks at least")
        self.batch_size_fn, self.length_fn = batch_size_fn, length_fn
        self.flops_per_batch, self.available_flops = flops_per_batch, available_flops
        self._clock = clock
        self._marks: deque[tuple[float, int, int, int]] = deque(maxlen=window_size)
        self._paused_at: float | None = None
        self._pauses = 0.0
        self._batches = self._samples = self._items = 0
        self._flops: float | None = None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not trainer.loggers:
            raise ConfigurationError(
                "ThroughputMonitor has nothing to log to, since the Trainer has no logger: give it one, or take "
                "ThroughputMonitor away"
            )
        flops = (
            self.flops_per_batch if self.flops_per_batch is not None else getattr(pl_module, "flops_per_batch", None)
        )
        self._flops = float(flops(pl_module) if callable(flops) else flops) if flops is not None else None
        if self.available_flops is None:
            self.available_flops = known_flops(trainer.strategy.root_device, trainer.precision)
        self._marks.clear()
        self._batches = self._samples = self._items = 0
        self._pauses, self._paused_at = 0.0, None
        self._mark(trainer)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        self._samples += trainer.logs.samples if self.batch_size_fn is None else self.batch_size_fn(batch)
        if self.length_fn is not None:
            self._items += self.length_fn(batch)
        every = trainer.log_every_n_steps
        if not every or trainer.batches_that_stepped % every or trainer.batches_that_stepped == 0:
            return
        self._mark(trainer)
        values = self.rates(trainer.world_size)
        if values:
            trainer.logs.send(
                {f"train/{name}": value for name, value in values.items()},
                trainer.batches_that_stepped - 1,
                trainer.current_epoch,
            )

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A validation inside of the fit is no part of training's time."""
        if self._marks:
            self._paused_at = self._clock()

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._paused_at is not None:
            self._pauses += self._clock() - self._paused_at
            self._paused_at = None

    def _mark(self, trainer: "Trainer") -> None:
        trainer.accelerator.synchronize(trainer.strategy.root_device)
        self._marks.append((self._clock() - self._pauses, self._batches, self._samples, self._items))

    def rates(self, world_size: int) -> dict[str, float]:
        """Over the window; empty before the second mark."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return {}
        batches, samples, items = ((b - a) / seconds for a, b in zip(first[1:], last[1:], strict=True))
        values = {"device/batches_per_sec": batches, "device/samples_per_sec": samples}
        if self.length_fn is not None:
            values["device/items_per_sec"] = items
        if self._flops is not None:
            values["device/flops_per_sec"] = batches * self._flops
        if world_size > 1:
            values |= {name.removeprefix("device/"): value * world_size for name, value in values.items()}
        if self._flops is not None and self.available_flops:
            values["device/mfu"] = batches * self._flops / self.available_flops
        return {**values, "time": last[0], "batches": last[1], "samples": last[2]}


def known_flops(device: torch.device, precision: str) -> float | None:
    """Peak operations a second of a CUDA device; None: not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    peaks = next((peaks for part, peaks in PEAK_FLOPS.items() if part in name), None)
    return peaks[0 if "16" in precision else 1] if peaks is not None else None
