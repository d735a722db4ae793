"""Does training wait for data that DataLoader workers could bring sooner?"""

import warnings
from collections.abc import Iterator
from time import monotonic
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from everstep.utilities.data import cpus, suggested_max_num_workers

T = TypeVar("T")

_SECONDS, _PART = 10.0, 0.2  # of waiting, and of the time in which it came to that: both have to be reached


def watched(batches: Iterator[T], loader: Any, ranks: int) -> Iterator[T]:
    """The batches; warns, once, if the loader keeps training waiting while CPUs are idle. `ranks`: of this node."""
    most = suggested_max_num_workers(ranks)
    if not isinstance(loader, DataLoader) or loader.num_workers >= most or cpus() <= ranks:
        return batches
    return _watched(batches, loader.num_workers, most)


def _watched(batches: Iterator[T], workers: int, most: int) -> Iterator[T]:
    began, waited = monotonic(), 0.0
    while True:
        asked = monotonic()
        try:
            batch = next(batches)
        except StopIteration:
            return
        now = monotonic()
        waited += now - asked
        yield batch
        if waited >= _SECONDS and waited >= _PART * (now - began):
            warnings.warn(
                f"training has waited for its data for {waited:.0f} of {now - began:.0f} seconds: give the training "
                f"DataLoader num_workers={most} (it has {workers})",
                stacklevel=2,
            )
            yield from batches
            return
