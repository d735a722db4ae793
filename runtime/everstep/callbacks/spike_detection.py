"""Ends a fit whose loss suddenly jumps, and notes the batch."""

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError, EverstepError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class TrainingSpikeError(EverstepError):
    """The loss has jumped."""

    def __init__(self, message: str, batch_idx: int) -> None:
        super().__init__(message)
        self.batch_idx = batch_idx


TrainingSpikeException = TrainingSpikeError  # as Lightning calls it


class SpikeDetection(Callback):
    """Compares each batch's loss with the mean of those before. All ranks raise if one of them sees a spike. It fetches
    the loss at every step, so it costs the step's time on an accelerator that it could have run ahead.

    Args:
        mode: "min": the loss shall be small.
        window: losses in the mean. warmup: batches before the first look.
        atol: a spike is worse than the mean by more than this; None: no such limit.
        rtol: … by more than this many times the mean.
        exclude_batches_path: a JSON file; indices of the batches are added to it; default:
            skip_batches.json in the Trainer's default_root_dir.
        finite_only: a loss that is NaN or infinite is a spike.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f'SpikeDetection(mode={mode!r}): give "min" or "max"')
        if window < 1 or warmup < 1:
            raise ConfigurationError("SpikeDetection: window and warmup have to be at least 1")
        self.mode, self.window, self.warmup, self.atol, self.rtol = mode, window, warmup, atol, rtol
        self.exclude_batches_path, self.finite_only = exclude_batches_path, finite_only
        self._losses: deque[float] = deque(maxlen=window)
        self._seen = 0
        self.bad_batches: list[int] = []

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else None  # of several optimizers there are several
        value = float(loss) if loss is not None else None
        spike = value is not None and self._is_spike(value)
        if not trainer.strategy.all_true(not spike):
            self._refuse(trainer, value, batch_idx)
        if value is not None:
            self._losses.append(value)
            self._seen += 1

    def _is_spike(self, value: float) -> bool:
        if not math.isfinite(value):
            return self.finite_only
        if self._seen < self.warmup or not self._losses:
            return False
        mean = sum(self._losses) / len(self._losses)
        worse = value - mean if self.mode == "min" else mean - value
        if self.atol is not None and worse > self.atol:
            return True
        return self.rtol is not None and worse > abs(mean) * self.rtol

    def _refuse(self, trainer: "Trainer", value: float | None, batch_idx: int) -> None:
        self.bad_batches.append(batch_idx)
        path = Path(self.exclude_batches_path or trainer.default_root_dir / "skip_batches.json")
        if trainer.is_global_zero:
            known = json.loads(path.read_text()) if path.exists() else []
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(sorted({*known, *self.bad_batches})))
        mean = sum(self._losses) / max(len(self._losses), 1)
        raise TrainingSpikeError(
            f"the loss has jumped to {value} at batch {batch_idx} of epoch {trainer.current_epoch}; the mean of the "
            f"{len(self._losses)} before is {mean:.4g}. It is noted in {path}: "
            "leave that batch out, lower the learning rate, or widen atol and rtol of SpikeDetection",
            batch_idx,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "seen": self._seen, "bad_batches": self.bad_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = deque(state_dict["losses"], maxlen=self.window)
        self._seen, self.bad_batches = state_dict["seen"], list(state_dict["bad_batches"])
