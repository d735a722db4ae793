"""On rank 0 only."""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from everstep.environment import Environment

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # of a script that has set up no logging: what it tells is shown
    log.addHandler(logging.StreamHandler())
    log.propagate = False


class _RankZeroOnly:
    """`@rank_zero_only`: a function that does its work on rank 0 and returns `default` on the others."""

    @property
    def rank(self) -> int:
        """This process's, of the whole run."""
        return Environment.read().rank

    def __call__(self, function: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        @functools.wraps(function)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return function(*args, **kwargs) if self.rank == 0 else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


@rank_zero_only
def rank_zero_info(*args: Any, **kwargs: Any) -> None:
    """A line for people, on standard error unless the script has set up logging. Arguments as of Logger.info."""
    log.info(*args, **kwargs)


@rank_zero_only
def rank_zero_warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 4) -> None:
    """As warnings.warn."""
    warnings.warn(message, category, stacklevel=stacklevel)
