"""Loaders without positions: iterable datasets, custom batch samplers, samplers without end. Read in order, one ahead.

Position is a number of batches. A resume in the same world skips what was consumed, or gives the dataset its state back
if it has state_dict and load_state_dict (read in this process, that is num_workers=0). Another world is refused.
What the dataset draws from this process's generators is drawn again from the same states.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from everstep import rng
from everstep.strategies import Strategy

_END = object()


#: A batch that was fetched before its turn; what it takes to fetch it again, random states and the dataset's before it;
#: whether every rank has one (where there are several, a question that was asked).
_Ahead = tuple[Any, tuple[rng.Moment, Any] | None, bool | Callable[[], bool]]


class Stream:
    """Batches of an epoch, knowing which is the last."""

    def __init__(self, loader: Any, strategy: Strategy, *, resumable: bool = True) -> None:
        """`resumable`: `state` will be asked for; its price is a look at the random states at every batch."""
        self.loader = loader
        self.strategy = strategy
        self._resumable = resumable
        self._opened: dict[str, Any] | None = None
        self._ahead: deque[_Ahead] = deque()
        self._agree = strategy.all_agree if strategy.world_size > 1 else None
        dataset = getattr(loader, "dataset", None)
        own = isinstance(dataset, IterableDataset) and getattr(loader, "num_workers", 0) == 0
        self._stateful: Any = dataset if own and hasattr(dataset, "state_dict") else None

    def __len__(self) -> int:
        """Batches in an epoch.

        Raises:
            TypeError: the loader does not say.
        """
        return len(self.loader)

    @property
    def state(self) -> Any:
        """Belongs to the batches handed out so far; None: none was."""
        if self._opened is None:
            return None
        notes = [note for _, note, _ in self._ahead if note is not None]
        ahead = [{"rng": moment.tree(), "dataset": dataset} for moment, dataset in notes]
        return {"opened": self._opened, "ahead": ahead}

    def batches(self, epoch: int, skip: int = 0, state: Any = None) -> Iterator[tuple[Any, bool]]:
        """(batch, is it the last) from batch number `skip` on. With several ranks all end with the shortest."""
        for part in (getattr(self.loader, "sampler", None), getattr(self.loader, "dataset", None), self.loader):
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        notes = state["ahead"] if state is not None else []
        if state is not None:
            rng.set_state(state["opened"])
        self._opened = rng.get_state() if self._resumable else None
        if self._stateful is not None and notes and notes[0]["dataset"] is not None:
            self._stateful.load_state_dict(notes[0]["dataset"])
            skip = 0
        iterator = iter(self.loader)
        for _ in itertools.islice(iterator, skip):
            pass
        self._ahead.clear()
        # The ranks agree on a batch while another is trained on: so with several it is fetched one more step ahead.
        for number in range(1 if self._agree is None else 2):
            if number < len(notes):
                rng.set_state(notes[number]["rng"])
            self._fetch(iterator)
        return self._rest(iterator)  # all this now, not at the first next(): it may draw numbers

    def _fetch(self, iterator: Iterator[Any]) -> None:
        note = None
        if self._resumable:
            note = rng.Moment(), self._stateful.state_dict() if self._stateful is not None else None
        ended = self._ahead and self._ahead[-1][0] is _END
        batch = _END if ended else next(iterator, _END)
        there = batch is not _END
        self._ahead.append((batch, note, there if self._agree is None else self._agree(there)))

    def _rest(self, iterator: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
        last = self._is_last()
        while not last:
            batch, _, _ = self._ahead.popleft()
            self._fetch(iterator)
            last = self._is_last()
            yield batch, last

    def _is_last(self) -> bool:
        everywhere = self._ahead[0][2]
        return not (everywhere() if callable(everywhere) else everywhere)


def batch_count(loader: Any) -> int | None:
    """Batches in an epoch of the user's loader; None if it cannot tell."""
    stream = isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
    if stream and not hasattr(loader.dataset, "__len__"):
        return None
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
