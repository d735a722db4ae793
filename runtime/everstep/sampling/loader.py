"""The user's DataLoader, made again around our order: same dataset, workers and collate function, our batches.

Random numbers in worker processes are a function of (run seed, epoch, position in the epoch), whichever worker draws
them and however far it has prefetched. With num_workers=0 the dataset uses the process's own generators, as always.
Loaders without positions (iterable datasets, custom batch samplers, samplers without length, any iterable) are streams:
`stream.py`.
"""

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from everstep import rng
from everstep.sampling.combined import CombinedLoader
from everstep.sampling.order import Order
from everstep.sampling.schedule import Micro, Shape, evaluation, schedule
from everstep.strategies import Strategy


def has_positions(loader: Any) -> bool:
    """Can this loader be made again around an order of our own?"""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and loader.batch_size is not None
        and hasattr(loader.sampler, "__len__")
    )


def unshuffled(loader: Any) -> Any:
    """The loader, or the combined ones, without the shuffling of a DataLoader."""
    if isinstance(loader, CombinedLoader):
        return loader.map(unshuffled)
    if not (isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler)):
        return loader
    plain, sampler = copy.copy(loader), SequentialSampler(loader.sampler.data_source)
    batches = BatchSampler(sampler, loader.batch_size, loader.drop_last) if loader.batch_size is not None else None
    vars(plain).update(sampler=sampler, batch_sampler=batches)  # it refuses to have them set
    return plain


class Remembering:
    """A DataLoader with a batch sampler of the user's own, which also knows whose samples are in a batch."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._user, self._loader = loader.batch_sampler, copy.copy(loader)
        vars(self._loader).update(batch_sampler=self)  # it refuses to have it set
        self._given: deque[list[int]] = deque()  # of batches that are on their way

    @staticmethod
    def can(loader: Any) -> bool:
        """Are there indices to know?"""
        plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
        return plain and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._user or ():
            self._given.append(list(indices))
            yield indices

    def batches(self) -> Iterator[tuple[list[int], Any]]:
        """(indices of its samples in the dataset, batch)."""
        self._given.clear()
        for batch in self._loader:
            yield self._given.popleft(), batch


class Remade:
    """Yields the batches of any schedule over the user's loader. With persistent workers they live across epochs."""

    def __init__(self, loader: "DataLoader[Any]", seed: int, *, same_every_epoch: bool = False) -> None:
        """`same_every_epoch`: the same samples in the same order in every epoch."""
        self.user = loader
        self.seed = seed
        self._same = same_every_epoch
        self.sampler: Any = loader.sampler
        self.batch_size: int = loader.batch_size  # type: ignore[assignment]
        self._keys = _Keys(loader.num_workers > 0)
        self._loader = _remake(loader, self._keys)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.sampler)

    def planned(self, epoch: int, plan: Iterator[Micro], purpose: str) -> Iterator[tuple[Micro, Any]]:
        """Each micro-batch of the plan with its batch. Opened now, not at the first next()."""
        ahead, here = tee(plan)  # the loader asks some micro-batches earlier than the loop
        return zip(here, self.batches(epoch, ahead, purpose), strict=True)

    def batches(self, epoch: int, plan: Iterator[Micro], purpose: str) -> Iterator[Any]:
        """Batches for the plan's micro-batches over the epoch's order."""
        seed = rng.derive(self.seed, purpose)
        self._keys.order = Order(self.sampler, seed, 0 if self._same else epoch)
        self._keys.plan = plan
        self._keys.epoch_seed = rng.derive(seed, "workers", epoch)
        generator = self._loader.generator
        assert generator is not None
        generator.manual_seed(self._keys.epoch_seed)
        if self.user.generator is None:
            # torch's loader draws one number here: a model that draws some finds the same ones as in a plain loop.
            torch.empty((), dtype=torch.int64).random_()
        return iter(self._loader)

    def indices(self, micro: Micro) -> list[int]:
        """Of the samples in a micro-batch of the present epoch."""
        return self._keys.order[micro.start : micro.stop]

    def rounds(self, world_size: int) -> tuple[int, int]:
        """Batches of each rank in an epoch, and the samples in them."""
        size = self.batch_size * world_size
        total = len(self)
        return (total // size, total // size * size) if self.user.drop_last else (-(-total // size), total)


class RankPart:
    """This rank's part of a loader with positions, as an iterable of batches: one of several that are read together."""

    def __init__(self, remade: Remade, strategy: Strategy, purpose: str, *, training: bool) -> None:
        """`training`: every rank gets the same number of batches, if need be by repeating a sample."""
        self._remade, self._strategy, self._purpose, self._training = remade, strategy, purpose, training
        self._epoch = self._passes = 0

    def __len__(self) -> int:
        return self._remade.rounds(self._strategy.data_world_size)[0]

    def set_epoch(self, epoch: int) -> None:
        self._epoch, self._passes = epoch, 0

    def __iter__(self) -> Iterator[Any]:
        remade, strategy = self._remade, self._strategy
        _, samples = remade.rounds(strategy.data_world_size)
        size = remade.batch_size

        world, rank = strategy.data_world_size, strategy.data_rank
        if self._training:
            plan = schedule(samples, Shape(size * world, 1, size), world, rank)
        else:
            plan = evaluation(samples, size, world, rank)

        purpose = f"{self._purpose}/{self._passes}" if self._passes else self._purpose
        self._passes += 1  # the second time in an epoch, for a shorter loader that starts again, in another order
        return remade.batches(self._epoch, plan, purpose)


class _Keys:
    """The batch sampler: lists of indices, with each sample's seed where workers need one."""

    def __init__(self, seeded: bool) -> None:
        self.seeded = seeded
        self.order: Order  # these three are of the present epoch
        self.plan: Iterator[Micro]
        self.epoch_seed: int

    def __iter__(self) -> Iterator[list[Any]]:
        order, seed = self.order, self.epoch_seed
        if not self.seeded:
            return order.of(self.plan)
        return (
            [
                (index, (seed + position * 0x9E3779B97F4A7C15) % 2**63)
                for position, index in enumerate(order[micro.start : micro.stop], start=micro.start)
            ]
            for micro in self.plan
        )


class _Seeded(Dataset[Any]):
    """In a worker process: seeds its generators for each sample, then fetches it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        return self.dataset[index]


class _Ours(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """What torch has to say of the number of workers, the user's own loader has said."""


def _remake(loader: "DataLoader[Any]", keys: Iterable[list[Any]]) -> "DataLoader[Any]":
    workers: dict[str, Any] = {}
    if loader.num_workers > 0:
        workers = {
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
        }
    return _Ours(
        _Seeded(loader.dataset) if loader.num_workers > 0 else loader.dataset,
        batch_sampler=keys,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        # The same script runs with and without a GPU: there is nothing to warn about.
        pin_memory=loader.pin_memory and torch.accelerator.is_available(),
        # Its own generator: what workers draw is the epoch's, wherever the process's generators stand.
        generator=torch.Generator(),
        **workers,
    )
