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
    _python.forget()
    _numpy.forget()


class Moment:
    """The states as they are now, taken cheaply enough for every batch; what makes a tree of them comes when asked."""

    __slots__ = ("_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = _python.get(), _numpy.get(), torch.default_generator.get_state()

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


class _Watched:
    """A generator's state. Asking for it costs 10 µs (python) to 50 (numpy); that it has not moved since is seen in its
    memory in a tenth of one."""

    _memory: Any = None
    _seen: bytes | None = None  # None: it has to be asked
    _state: Any = None

    def get(self) -> Any:
        seen = self._memory.raw
        if seen != self._seen:
            self._state, telling = self._ask()
            self._seen = seen if telling else None
        return self._state

    def _ask(self) -> tuple[Any, bool]:
        """The state, and whether the memory will tell of its next move: not where a normal lies ready, beside it."""
        raise NotImplementedError

    def forget(self) -> None:
        self._seen = None


class _Python(_Watched):
    def __init__(self) -> None:
        hidden: Any = random.getstate
        self._memory = _memory_of(hidden.__self__)
        trial = random.Random(0)
        before = _memory_of(trial).raw
        trial.random()
        self._shows = _memory_of(trial).raw != before  # in this version of Python too

    def _ask(self) -> tuple[Any, bool]:
        state = random.getstate()
        return state, self._shows and state[2] is None


class _Numpy(_Watched):
    _BYTES = 4 * 624 + 4  # MT19937: its words and the place in them
    _generator: Any = None

    def get(self) -> Any:
        generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]  # it is public
        if not isinstance(generator, np.random.MT19937):
            return np.random.get_state(legacy=True)
        if generator is not self._generator:
            self._generator, self._seen = generator, None
            self._memory = (ctypes.c_char * self._BYTES).from_address(generator.ctypes.state_address)
        return super().get()

    def _ask(self) -> tuple[Any, bool]:
        state: Any = np.random.get_state(legacy=True)
        return state, not state[3]


def _memory_of(generator: random.Random) -> Any:
    """What the C part of one of Python's generators consists of: its words and the place in them."""
    start, end = object.__basicsize__, random.Random.__base__.__basicsize__  # type: ignore[union-attr]
    return (ctypes.c_char * (end - start)).from_address(id(generator) + start)


_python, _numpy = _Python(), _Numpy()


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
