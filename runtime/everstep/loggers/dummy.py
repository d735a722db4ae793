"""Stands in for a logger where nothing is to be written, as in a fast_dev_run: takes everything, keeps nothing."""

from typing import Any

from everstep.loggers.base import Logger


class DummyLogger(Logger):
    """Takes everything, keeps nothing."""

    @property
    def experiment(self) -> Any:
        """Whatever is called on it does nothing."""
        return Anything()


class Anything:
    """Takes every call, does nothing."""

    def __getattr__(self, name: str) -> "Anything":
        return self

    def __getitem__(self, key: Any) -> "Anything":
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Anything":
        return self
