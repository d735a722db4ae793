"""A progress bar on rank 0, standard library only. In a pipe: one line per epoch."""

import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


@dataclass
class Bar:
    """One bar: an epoch of training, or a pass of an evaluation."""

    what: str
    total: int | None  # batches; None: not known
    began: float
    counted_from: int = 0  # batches that were done then
    done: int = 0
    handle: Any = None  # of whoever draws it

    @property
    def progress(self) -> str:
        return f"{self.done}/{self.total if self.total is not None else '?'}"

    @property
    def per_second(self) -> float:
        return (self.done - self.counted_from) / max(time.monotonic() - self.began, 1e-9)


class ProgressBar(Callback):
    """Another bar overrides `opened`, `draw` and `closed`.

    Args:
        refresh_seconds: at most one redraw in so many seconds; only then are values fetched from the device.
        stream: where to draw; default: standard error.
    """

    def __init__(self, refresh_seconds: float = 0.2, stream: TextIO | None = None) -> None:
        self.refresh_seconds = refresh_seconds
        self.stream = stream
        self._next = 0.0
        self._on = True
        self._training: Bar | None = None
        self._evaluation: Bar | None = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for what in ("sanity", "train", "validation", "test", "predict"):
            if hasattr(cls, name := f"init_{what}_tqdm"):
                raise ConfigurationError(
                    f"{cls.__name__} defines {name}, which is never called: override opened(bar), where bar.what is "
                    "the text and, after super().opened(bar), bar.handle what draws it"
                )

    # What is drawn, and how.

    def get_metrics(self, trainer: "Trainer", pl_module: "LightningModule") -> dict[str, Any]:
        """Numbers and strings beside the bar: what was logged with prog_bar=True. Asked for only when it is redrawn."""
        return dict(trainer.progress_bar_metrics)

    def opened(self, bar: Bar) -> None:
        """A bar begins."""

    def draw(self, bar: Bar, values: dict[str, Any]) -> None:
        """Draw it again, with values that were logged with prog_bar=True."""
        if self._stream.isatty():
            self._write(f"\r{_line(bar, values)}\x1b[K")

    def closed(self, bar: Bar, values: dict[str, Any]) -> None:
        """It is complete. An evaluation inside of a fit leaves nothing behind."""
        passing = bar is self._evaluation and self._training is not None
        if self._stream.isatty():
            self._write("\r\x1b[K" if passing else f"\r{_line(bar, values)}\x1b[K\n")
        elif not passing:
            self._write(_line(bar, values) + "\n")

    @property
    def _stream(self) -> TextIO:
        return self.stream or sys.stderr

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    # When.

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        self._on = trainer.is_global_zero
        self._training = self._evaluation = None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._train(trainer)  # a resume in the middle of an epoch has no on_train_epoch_start

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._train(trainer)

    def _train(self, trainer: "Trainer") -> None:
        if self._on and self._training is None:
            self._training = self._open(f"Epoch {trainer.current_epoch}", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._training is not None:
            if self._training.done == 0:
                self._training.counted_from = batch_idx
            self._training.done = batch_idx + 1
            if time.monotonic() >= self._next:
                self._draw(trainer, self._training)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._training is not None:
            self.closed(self._training, self.get_metrics(trainer, pl_module))
            self._training = None

    def _evaluates(self, trainer: "Trainer", what: str, stage: Any) -> None:
        if self._on:
            counts = trainer.num_batches[stage]
            self._evaluation = self._open(what, sum(counts))

    def _evaluated_batch(self, trainer: "Trainer") -> None:
        if self._evaluation is not None:
            self._evaluation.done += 1
            if time.monotonic() >= self._next:
                self._draw(trainer, self._evaluation)

    def _evaluated(self, trainer: "Trainer") -> None:
        if self._evaluation is not None:
            self.closed(
                self._evaluation,
                {} if self._training is not None else self._values(trainer),
            )
            self._evaluation = None

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not trainer.sanity_checking:
            self._evaluates(trainer, "Validation", "validation")

    def on_validation_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluated_batch(trainer)

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._evaluated(trainer)

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._evaluates(trainer, "Test", "test")

    def on_test_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluated_batch(trainer)

    def on_test_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._evaluated(trainer)

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._evaluates(trainer, "Prediction", "predict")

    def on_predict_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluated_batch(trainer)

    def on_predict_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._evaluated(trainer)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        for bar in (self._evaluation, self._training):
            if bar is not None:
                self.closed(bar, {})
        self._training = self._evaluation = None

    def _open(self, what: str, total: int | float) -> Bar:
        bar = Bar(what, int(total) if math.isfinite(total) else None, time.monotonic())
        self.opened(bar)
        return bar

    def _draw(self, trainer: "Trainer", bar: Bar) -> None:
        self._next = time.monotonic() + self.refresh_seconds
        self.draw(bar, self._values(trainer) if self.shown else {})

    def _values(self, trainer: "Trainer") -> dict[str, Any]:
        assert trainer.lightning_module is not None
        return self.get_metrics(trainer, trainer.lightning_module)

    @property
    def shown(self) -> bool:
        """Would anybody see a redraw? Else no value is fetched."""
        return self._stream.isatty()


def shown_values(values: dict[str, Any]) -> dict[str, str]:
    """Numbers with four digits, anything else as it is."""
    return {name: f"{value:.4g}" if isinstance(value, int | float) else str(value) for name, value in values.items()}


def _line(bar: Bar, values: dict[str, Any]) -> str:
    shown = "".join(f", {name} {value}" for name, value in shown_values(values).items())
    return f"{bar.what}: {bar.progress}, {bar.per_second:.1f} it/s{shown}"
