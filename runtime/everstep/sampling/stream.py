"""Loaders without positions: iterable datasets, custom batch samplers, lists of batches. Read in order, one ahead.

Position is a number of batches. A resume in the same world skips what was consumed, or gives the dataset its state back
if it has state_dict and load_state_dict (read in this process, that is num_workers=0). Another world is refused.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from everstep.strategies import Strategy

_END = object()


class Stream:
    """Batches of one epoch with the knowledge of which is the last. `state` belongs to the batches handed out so far."""

    def __init__(self, loader: Any, strategy: Strategy) -> None:
        self.loader = loader
        self.strategy = strategy
        self.state: Any = None
        dataset = getattr(loader, "dataset", None)
        own = isinstance(dataset, IterableDataset) and getattr(loader, "num_workers", 0) == 0
        self._stateful: Any = dataset if own and hasattr(dataset, "state_dict") else None

    def __len__(self) -> int:
        """Batches in an epoch.

        Raises:
            TypeError: the loader does not say.
        """
        return len(self.loader)

    def batches(self, epoch: int, skip: int = 0, state: Any = None) -> Iterator[tuple[Any, bool]]:
        """(batch, is it the last) from batch number `skip` on. With several ranks all end with the shortest."""
        for part in (getattr(self.loader, "sampler", None), getattr(self.loader, "dataset", None), self.loader):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        if state is not None and self._stateful is not None:
            self._stateful.load_state_dict(state)
            skip = 0
        iterator = iter(self.loader)
        ahead = next(itertools.islice(iterator, skip, None), _END)  # now, not at the first next(): it may draw numbers
        return self._rest(iterator, ahead)

    def _rest(self, iterator: Iterator[Any], ahead: Any) -> Iterator[tuple[Any, bool]]:
        if not self.strategy.all_true(ahead is not _END):
            return
        last = False
        while not last:
            batch = ahead
            self.state = self._stateful.state_dict() if self._stateful is not None else None
            ahead = next(iterator, _END)
            last = not self.strategy.all_true(ahead is not _END)
            yield batch, last


def batch_count(loader: Any) -> int | None:
    """Batches in an epoch of the user's loader; None if it cannot tell."""
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        if not hasattr(loader.dataset, "__len__"):
            return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
