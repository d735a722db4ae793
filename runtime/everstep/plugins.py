"""What `Trainer(plugins=…)` takes, under the names and with the arguments that Lightning's scripts use."""

from typing import Any, Literal

from everstep.precision import MixedPrecision as _BFloat16
from everstep.precision import Precision, ScaledPrecision, TruePrecision

__all__ = ["DoublePrecision", "HalfPrecision", "MixedPrecision", "Precision"]


def MixedPrecision(precision: Literal["16-mixed", "bf16-mixed"], device: str, scaler: Any = None) -> Precision:
    """Mixed precision on a type of device. `scaler`: a torch.amp.GradScaler, for "16-mixed"."""
    return ScaledPrecision(device, scaler) if precision == "16-mixed" else _BFloat16(device)


def HalfPrecision(precision: Literal["16-true", "bf16-true"] = "16-true") -> Precision:
    """Everything in half precision."""
    return TruePrecision(precision)


def DoublePrecision() -> Precision:
    """Everything in float64."""
    return TruePrecision("64-true")
