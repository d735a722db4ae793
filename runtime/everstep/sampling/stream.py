"""Loaders without positions: iterable datasets, custom batch samplers, lists of batches. Read in order, one ahead.

Position is a number of batches. A resume in the same world skips what was consumed, or gives the dataset its state back
if it has state_dict and load_state_dict (read in this process, that is num_workers=0). Another world is refused.
What the dataset draws from this process's generators is drawn again from the same states.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from everstep import rng
from everstep.strategies import Strategy

_END = object()


class Stream:
    """Batches of an epoch, knowing which is the last. `state` belongs to the batches handed out so far."""

    def __init__(self, loader: Any, strategy: Strategy) -> None:
        self.loader = loader
        self.strategy = strategy
        self.state: Any = None
        self._opened: Any = None
        self._next_state: Any = None
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
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        dataset_state = state["dataset"] if state is not None else None
        if state is not None:
            rng.set_state(state["opened"])
        self._opened = rng.get_state()
        if dataset_state is not None and self._stateful is not None:
            self._stateful.load_state_dict(dataset_state)
            skip = 0
        iterator = iter(self.loader)
        for _ in itertools.islice(iterator, skip):
            pass
        if state is not None:
            rng.set_state(state["ahead"])
        return self._rest(iterator, self._ahead(iterator))  # now, not at the first next(): it may draw numbers

    def _ahead(self, iterator: Iterator[Any]) -> Any:
        """The next batch. What a resume needs to fetch it again is noted first."""
        self._next_state = {
            "opened": self._opened,
            "ahead": rng.get_state(),
            "dataset": self._stateful.state_dict() if self._stateful is not None else None,
        }
        return next(iterator, _END)

    def _rest(self, iterator: Iterator[Any], ahead: Any) -> Iterator[tuple[Any, bool]]:
        last = not self.strategy.all_true(ahead is not _END)
        while not last:
            batch, ahead = ahead, self._ahead(iterator)
            self.state = self._next_state
            last = not self.strategy.all_true(ahead is not _END)
            yield batch, last


def batch_count(loader: Any) -> int | None:
    """Batches in an epoch of the user's loader; None if it cannot tell."""
    stream = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
    if stream and not hasattr(loader.dataset, "__len__"):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
