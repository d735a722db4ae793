"""A Trainer's callbacks: those that it is given, and those that it adds."""

from collections.abc import Iterable

from everstep.callbacks import conflicts
from everstep.callbacks.base import Callback
from everstep.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from everstep.callbacks.model_summary import ModelSummary
from everstep.callbacks.progress import ProgressBar


def with_defaults(
    given: Callback | Iterable[Callback] | None, bar: bool | None, summary: bool | None, checkpoints: bool | None,
    *, barebones: bool, main: bool,
) -> list[Callback]:  # fmt: skip
    """In the order in which they are called: those that keep checkpoints come last, and see what the others did.

    Args:
        given: as `callbacks` of the Trainer; bar, summary, checkpoints: as enable_…; barebones: adds none.
        main: is this rank 0? It alone draws and prints.

    Raises:
        ConfigurationError: some do not go together, or with the flags.
    """
    callbacks = [given] if isinstance(given, Callback) or callable(given) else list(given or ())
    conflicts.check(callbacks)
    conflicts.check_flags(callbacks, bar, summary, checkpoints)
    for wanted, kind, default in (
        (bar is not False and main, ProgressBar, ProgressBar),
        (summary is not False and main, ModelSummary, ModelSummary),
        (checkpoints is not False, Checkpoint, ModelCheckpoint),
    ):
        if wanted and not barebones and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(default())
    return sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
