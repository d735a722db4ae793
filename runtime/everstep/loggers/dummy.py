"""Stands in for a logger where nothing is to be written, as in a fast_dev_run: takes everything, keeps nothing."""

from typing import Any

from everstep.loggers.base import Logger


class DummyLogger(Logger):
    @property
    def experiment(self) -> Any:
        """Whatever is called on it does nothing."""
        return _Anything()


class _Anything:
    def __getattr__(self, name: str) -> "_Anything":
        return self

    def __getitem__(self, key: Any) -> "_Anything":
        return self

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "_Anything":
        return self
