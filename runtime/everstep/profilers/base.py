"""The base of all profilers: measures nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Profiler:
    """The loop hands everything worth measuring through `timed` when a Trainer call begins. The base class gives it
    back as it is, so that a profiler that is off costs nothing; others override `profile` and these two."""

    def profile(self, action: str) -> AbstractContextManager[Any]:
        """Measure what is inside: `with trainer.profiler.profile("tokenize"):`."""
        return nullcontext()

    def timed(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured at every call."""
        return function

    def timed_iterator(self, action: str, iterator: Iterator[Any]) -> Iterator[Any]:
        """The iterator, measured at every next()."""
        return iterator

    def setup(self, stage: str, log_dir: str | None) -> None:
        """A Trainer call begins: fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """It has ended: write the report."""
