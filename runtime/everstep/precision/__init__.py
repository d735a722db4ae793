"""In which number format a step computes. The base class is float32, and works."""

import warnings
from collections.abc import Callable

from everstep.errors import ConfigurationError
from everstep.precision.base import Precision
from everstep.precision.mixed import MixedPrecision, ScaledPrecision
from everstep.precision.true import TruePrecision

__all__ = ["MixedPrecision", "Precision", "ScaledPrecision", "TruePrecision", "choose_precision"]

#: Name -> how it is made for a type of device.
_KINDS: dict[str, Callable[[str], Precision]] = {
    "32-true": lambda device: Precision(),
    "64-true": lambda device: TruePrecision("64-true"),
    "16-true": lambda device: TruePrecision("16-true"),
    "bf16-true": lambda device: TruePrecision("bf16-true"),
    "16-mixed": ScaledPrecision,
    "bf16-mixed": MixedPrecision,
}
#: As they were written before Lightning 2.
_DATED = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
#: As other libraries call them.
_ELSEWHERE = {
    "fp16": '"16-mixed" or "16-true"',
    "float16": '"16-mixed" or "16-true"',
    "bfloat16": '"bf16-mixed" or "bf16-true"',
    "fp32": '"32-true"',
    "transformer-engine": "a Precision of your own, which replaces the layers",
    "transformer-engine-float16": "a Precision of your own, which replaces the layers",
}


def choose_precision(asked: int | str | Precision | None = None, device: str = "cpu") -> Precision:
    """What `precision=` means for a type of device: "32-true" (None), "64-true", "16-true", "bf16-true", "16-mixed",
    "bf16-mixed", the older 16, 32, 64 and "bf16" (also as text), or a Precision.

    Raises:
        ConfigurationError: there is no such precision.
    """
    if isinstance(asked, Precision):
        return asked
    name = "32-true" if asked is None else _DATED.get(str(asked), str(asked))
    if name not in _KINDS:
        meant = _ELSEWHERE.get(name)
        raise ConfigurationError(
            f"precision={asked!r} is not known: give {meant}"
            if meant
            else f"precision={asked!r} is not known: give one of {', '.join(_KINDS)} (or {', '.join(_DATED)})"
        )
    if name == "16-mixed" and device == "cpu":
        # float16 is slower than float32 there, and needs scaling; bfloat16 is what CPUs have instructions for.
        warnings.warn(
            f'precision={asked!r} on a CPU: bf16-mixed is used instead. Give "bf16-mixed" to say so yourself, '
            'or ScaledPrecision("cpu") for float16 all the same',
            stacklevel=4,  # the line that makes the Trainer
        )
        name = "bf16-mixed"
    return _KINDS[name](device)
