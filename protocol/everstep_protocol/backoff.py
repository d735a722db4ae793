"""Delay before a restart: exponential, bounded, spread by a hash, not by dice: a pure function."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """The first restart waits nothing, the n-th initial_seconds * factor^(n-2), at most max_seconds, +-20 %."""

    initial_seconds: float = 1.0
    factor: float = 2.0
    max_seconds: float = 300.0


def delay(backoff: Backoff, restart: int, salt: str) -> float:
    """Seconds to wait before restart number `restart` (1 ..) since the last progress. `salt`: the run's uid."""
    if restart <= 1:
        return 0.0
    try:
        plain = min(backoff.initial_seconds * backoff.factor ** (restart - 2), backoff.max_seconds)
    except OverflowError:
        plain = backoff.max_seconds
    digest = hashlib.sha256(f"{salt}/{restart}".encode()).digest()
    return plain * (0.8 + 0.4 * digest[0] / 255)
