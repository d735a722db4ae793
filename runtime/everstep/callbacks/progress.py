"""A progress bar on rank 0, standard library only. In a pipe: one line per epoch."""

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from everstep.callbacks.base import Callback

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class ProgressBar(Callback):
    """Args:
    refresh_seconds: at most one redraw in so many seconds; only then are values fetched from the device.
    stream: where to draw; default: standard error.
    """

    def __init__(self, refresh_seconds: float = 0.2, stream: TextIO | None = None) -> None:
        self.refresh_seconds = refresh_seconds
        self.stream = stream
        self._next = 0.0
        self._epoch_start = 0.0
        self._batches = 0

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._epoch_start = time.monotonic()

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._epoch_start, self._batches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        now = time.monotonic()
        if now >= self._next and self._stream.isatty():
            self._next = now + self.refresh_seconds
            self._write("\r" + self._line(trainer, batch_idx + 1, now) + "\x1b[K")

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        line = self._line(trainer, trainer.num_training_batches, time.monotonic())
        self._write(f"\r{line}\x1b[K\n" if self._stream.isatty() else line + "\n")

    @property
    def _stream(self) -> TextIO:
        return self.stream or sys.stderr

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _line(self, trainer: "Trainer", batch: int | float, now: float) -> str:
        rate = self._batches / max(now - self._epoch_start, 1e-9)
        values = "".join(f", {name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        return f"Epoch {trainer.current_epoch}: {batch}/{trainer.num_training_batches}, {rate:.1f} it/s{values}"
