"""The process's random number generators (python, numpy, torch) as plain trees, and seeds derived from seeds."""

import ctypes
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """A seed below 2^63 for one purpose: a hash, so that neighbours have nothing in common."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """A tree of tensors and JSON scalars, for `set_state`."""
    return Moment().tree()


def set_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    _numpy.forget()


class Moment:
    """The states as they are now, taken cheaply enough for every batch; what makes a tree of them comes when asked."""

    __slots__ = ("_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), _numpy.get(), torch.get_rng_state()

    def tree(self) -> dict[str, Any]:
        """As of `get_state`."""
        version, words, gauss = self._python
        _, keys, position, has_gauss, cached = self._numpy
        return {
            "torch": self._torch,
            "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
            "numpy": {
                "keys": torch.from_numpy(keys.astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached": float(cached),
            },
        }


class _Numpy:
    """numpy's state. Asking numpy costs 100 µs; that it has not moved since is seen in its memory in one."""

    _BYTES = 4 * 624 + 4  # MT19937: its words and the place in them

    def __init__(self) -> None:
        self._seen: bytes | None = None
        self._state: Any = None

    def get(self) -> Any:
        generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]  # it is public
        if not isinstance(generator, np.random.MT19937):
            return np.random.get_state(legacy=True)
        seen = ctypes.string_at(generator.ctypes.state_address, self._BYTES)
        # A normal that lies ready is outside of this memory: as long as there is one, numpy has to be asked.
        if seen != self._seen or self._state[3]:
            self._seen, self._state = seen, np.random.get_state(legacy=True)
        return self._state

    def forget(self) -> None:
        self._seen = None


_numpy = _Numpy()


@contextmanager
def forked(state: int | dict[str, Any]) -> Iterator[None]:
    """Generators of this seed, or in this state, inside; what was there before is there again after."""
    before = get_state()
    if isinstance(state, int):
        seed_generators(state)
    else:
        set_state(state)
    try:
        yield
    finally:
        set_state(before)
