"""The order of an epoch: what the user's own sampler yields under a seed, the same on every rank and at every call."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from everstep import rng
from everstep.sampling.schedule import Micro

_PIECE = 1 << 16


class Order:
    """Dataset indices of epoch `epoch` (0 ..), read from the sampler in pieces, as asked for: it may have no end.

    Reading leaves the process's generators as they were.
    """

    def __init__(self, sampler: Any, seed: int, epoch: int) -> None:
        if isinstance(sampler, DistributedSampler):  # it would yield one rank's part, padded: the split is ours
            data: Any = sampler.dataset
            sampler = RandomSampler(data) if sampler.shuffle else SequentialSampler(data)
        generator = getattr(sampler, "generator", None)
        if isinstance(generator, torch.Generator):  # the user's own: its state is in no checkpoint
            generator.manual_seed(rng.derive(seed, "order", epoch))
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        if isinstance(sampler, SequentialSampler):
            self._rest: Any = iter(())
            self._read = list(range(len(sampler)))
            return
        with rng.forked(rng.derive(seed, "order", epoch)):
            self._rest = iter(sampler)
            self._read = self._piece(_PIECE)
            self._state = rng.get_state()

    def __getitem__(self, part: slice) -> list[int]:
        """The indices at these places, with a start and a stop."""
        if part.stop > len(self._read):
            self._read_to(part.stop)
        return self._read[part]

    def of(self, plan: Iterator[Micro]) -> Iterator[list[int]]:
        """The indices of each micro-batch of a plan."""
        for micro in plan:
            if micro.stop > len(self._read):
                self._read_to(micro.stop)
            yield self._read[micro.start : micro.stop]

    def _read_to(self, stop: int) -> None:
        with rng.forked(self._state):
            self._read += self._piece(max(stop - len(self._read), _PIECE))
            self._state = rng.get_state()

    def _piece(self, count: int) -> list[int]:
        return [int(index) for index in itertools.islice(self._rest, count)]
