"""What the ranks tell each other about checkpoints: small JSON values in the process group's store.

No collective, no pickle. Each rank uses a connection of its own (`store.clone()`) and only ever polls it, so that
neither the thread that trains nor the one that saves waits for the other.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_LONGEST_PAUSE = 0.02  # seconds between two looks
_HEARD_SECONDS = 10.0  # that rank 0 gives the others to hear the result of an exchange


class Store(Protocol):
    """The part of torch.distributed.Store that is used here."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def delete_key(self, key: str, /) -> bool: ...
    def add(self, key: str, amount: int, /) -> int: ...


class _OneRank:
    """The store of a world of one."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        self._values[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self._values[key]

    def check(self, keys: list[str], /) -> bool:
        return all(key in self._values for key in keys)

    def delete_key(self, key: str, /) -> bool:
        return self._values.pop(key, None) is not None

    def add(self, key: str, amount: int, /) -> int:
        return amount


class GaveUp(Exception):
    """Waiting was no longer of use."""


class Ranks:
    """This rank among the others. Every rank makes the same calls in the same order; keys name the generation."""

    def __init__(self, rank: int, world_size: int, store: Store | None, generation: int) -> None:
        if store is None and world_size > 1:
            raise ValueError("several ranks need the process group's store")
        self.rank = rank
        self.world_size = world_size
        clone = getattr(store, "clone", None)
        self._store: Store = _OneRank() if store is None else clone() if clone else store
        # The how-manieth use of this store it is, so that a second one in the same round has keys of its own.
        instance = self._store.add(f"everstep/checkpoint/{generation}/instances/{rank}", 1)
        self._prefix = f"everstep/checkpoint/{generation}/{instance}"
        self._count = itertools.count()

    def exchange(self, value: Any) -> list[Any]:
        """Everybody's value, by rank, on every rank. Blocks until all have called it."""
        key = f"exchange/{next(self._count)}"
        self.tell(f"{key}/{self.rank}", value)
        if self.rank == 0:
            keys = [f"{key}/{rank}" for rank in range(self.world_size)]
            values = self.hear(keys)
            self.tell(key, values)
            self.forget(keys)
            # The store lives in this process: were it to end now, the others would hear nothing.
            patience = time.monotonic() + _HEARD_SECONDS
            heard = [f"{key}/heard/{rank}" for rank in range(1, self.world_size)]
            with contextlib.suppress(GaveUp):
                self.hear(heard, lambda: time.monotonic() > patience)
                self.forget([key, *heard])
            return values
        (values,) = self.hear([key])
        self.tell(f"{key}/heard/{self.rank}", True)
        return list(values)

    def tell(self, key: str, value: Any) -> None:
        self._store.set(f"{self._prefix}/{key}", json.dumps(value))

    def hear(self, keys: Sequence[str], stop: Callable[[], bool] = lambda: False) -> list[Any]:
        """The values of these keys, once all are there.

        Raises:
            GaveUp: `stop` said so before they were.
        """
        if not keys:
            return []
        full = [f"{self._prefix}/{key}" for key in keys]
        pause = 0.0005
        while not self._store.check(full):
            if stop():
                raise GaveUp
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return [json.loads(self._store.get(key)) for key in full]

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._store.delete_key(f"{self._prefix}/{key}")
