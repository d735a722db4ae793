"""Durations as users write them, and alarms that ring at the same step on every rank."""

import re
import time
from collections.abc import Mapping
from datetime import timedelta

import torch

from everstep.errors import ConfigurationError
from everstep.strategies import Strategy

Duration = str | timedelta | dict[str, int]


def seconds(duration: Duration, name: str) -> float:
    """`duration`: "DD:HH:MM:SS", a timedelta, or the arguments of one as a dict. `name`: of the argument, for messages.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, Mapping):
        try:
            return timedelta(**duration).total_seconds()
        except TypeError:
            raise ConfigurationError(
                f"{name}={duration!r}: a dict has to have keys of timedelta, such as {{'hours': 2}}"
            ) from None
    if isinstance(duration, str) and re.fullmatch(r"\d+:\d+:\d+:\d+", duration):
        days, hours, minutes, rest = map(int, duration.split(":"))
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()
    raise ConfigurationError(
        f'{name}={duration!r}: a time has to be "DD:HH:MM:SS", such as "00:12:00:00", a timedelta, or a dict of its '
        "arguments"
    )


class Alarm:
    """Rings once `after` seconds have passed, at the same step on every rank.

    Ranks that asked their own clocks would not agree. Asking each other at every step would cost a collective per step,
    so they do so a few times: each time they agree on how many steps to leave until the next.
    """

    def __init__(self, after: float, strategy: Strategy, passed: float = 0.0) -> None:
        """`passed`: seconds that count already."""
        self.after, self._strategy = after, strategy
        self._start = time.monotonic() - passed
        self._steps = self._next = 0
        self._counted_from = passed
        self.is_over = passed >= after  #: before the first step; the same on all ranks

    @property
    def passed(self) -> float:
        """Seconds, by this rank's clock."""
        return time.monotonic() - self._start

    def rings(self) -> bool:
        """Asked once per step, on every rank alike. A collective, now and then."""
        if self._strategy.world_size == 1:
            return self.passed >= self.after
        self._steps += 1
        if self._steps < self._next:
            return False
        passed = float(self._strategy.reduce(torch.tensor([self.passed], dtype=torch.float64), reduce_op="max"))
        if passed >= self.after:
            return True
        steps_left = (self.after - passed) / max(passed - self._counted_from, 1e-6) * self._steps
        self._next = self._steps + max(1, int(steps_left / 2))
        return False

    def restart(self) -> None:
        self._start, self._steps, self._next, self._counted_from = time.monotonic(), 0, 0, 0.0
