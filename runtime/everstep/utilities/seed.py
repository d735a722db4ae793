"""isolate_rng: random numbers drawn inside leave no trace outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from everstep import rng
from everstep.seed import seed_everything

__all__ = ["isolate_rng", "seed_everything"]


@contextmanager
def isolate_rng() -> Iterator[None]:
    before = rng.get_state()
    try:
        yield
    finally:
        rng.set_state(before)
