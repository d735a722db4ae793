"""Callbacks that do not go together, by name."""

from collections.abc import Sequence
from typing import Any

from everstep.callbacks.base import Callback
from everstep.callbacks.model_checkpoint import Checkpoint
from everstep.callbacks.model_summary import ModelSummary
from everstep.callbacks.progress import ProgressBar
from everstep.errors import ConfigurationError


def check(callbacks: Sequence[Any]) -> None:
    """
    Raises:
        ConfigurationError: one is no callback, two would be in each other's way, or share a name in checkpoints.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            name = callback.__name__
            raise ConfigurationError(f"callbacks has the class {name}: give an object of it, {name}(…)")
        if not isinstance(callback, Callback):
            raise ConfigurationError(
                f"callbacks has a {type(callback).__name__}: every one has to be an everstep Callback"
            )
    for kind, what in ((ProgressBar, "draw progress"), (ModelSummary, "print the model's summary")):
        several = [type(callback).__name__ for callback in callbacks if isinstance(callback, kind)]
        if len(several) > 1:
            raise ConfigurationError(f"{' and '.join(several)} both {what}: take one of them away")
    for callback in callbacks:
        for other in callbacks:
            if other is not callback and isinstance(other, tuple(callback.not_with)):
                raise ConfigurationError(
                    f"{type(callback).__name__} and {type(other).__name__} do not go together, both change the weights "
                    "that are kept: take one of them away"
                )
    # Its state is not asked for: a callback may have one only when a fit has begun.
    keys = [callback.state_key for callback in callbacks if type(callback).state_dict is not Callback.state_dict]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(f"two callbacks save their state as {key!r}: override state_key in one of them")


def check_flags(
    callbacks: Sequence[Callback], bar: bool | None, summary: bool | None, checkpoints: bool | None
) -> None:
    """
    Raises:
        ConfigurationError: a flag turns off what a callback is there for.
    """
    for kind, flag, value in (
        (ProgressBar, "enable_progress_bar", bar), (ModelSummary, "enable_model_summary", summary),
        (Checkpoint, "enable_checkpointing", checkpoints),
    ):  # fmt: skip
        given = next((callback for callback in callbacks if isinstance(callback, kind)), None)
        if value is False and given is not None:
            raise ConfigurationError(
                f"{flag}=False, but {type(given).__name__} is among the callbacks: take one of them away"
            )
