"""Where the loop's training batches come from: a loader with positions, or a stream. Both yield (micro, batch)."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset

from everstep.errors import ConfigurationError
from everstep.sampling.combined import CombinedLoader
from everstep.sampling.loader import RankPart, Remade, has_positions
from everstep.sampling.schedule import Micro, Shape, schedule
from everstep.sampling.stream import Stream, batch_count
from everstep.strategies import Strategy


class Source(Protocol):
    """Training batches, from any step boundary on. A position is samples consumed (a stream: batches)."""

    shape: Shape

    @property
    def rounds(self) -> int | None:
        """In an epoch; None: not known before its end."""

    def epoch(self, epoch: int, position: int, state: Any = None) -> Iterator[tuple[Micro, Any]]:
        """The rest of the epoch for this rank, from `position` on. It is opened now, not at the first next()."""

    def accumulate(self, rounds: int) -> None:
        """From the next epoch on, this many rounds make a window."""

    def state(self) -> dict[str, Any]:
        """The reference, for a checkpoint: equal on all ranks."""

    def rank_state(self) -> Any:
        """What this rank alone knows of its place."""

    def follow(self, before: "Source") -> None:
        """Go on after the epochs of another source: batches of this loader, for the world in which the run began."""

    def check(self, state: dict[str, Any], world_size: int) -> None:
        """Take the reference over from a checkpoint that was saved with `world_size` ranks.

        Raises:
            ConfigurationError: training cannot go on from there with this loader.
        """

    def rounds_of(self, position: int) -> int:
        """Rounds of the epoch that are done at a position."""

    def position_of(self, rounds: int) -> int:
        """The position after so many rounds."""


def training_source(
    loader: Any, strategy: Strategy, accumulation: int, limit: int | float, seed: int, *,
    divide: bool = True, same_every_epoch: bool = False, resumable: bool = True,
) -> "Positions | Batches":  # fmt: skip
    """The source for a user's training loader.

    Args:
        divide: over the ranks; False: each rank's loader gives its own batches.
        same_every_epoch: the same batches in every epoch.
        resumable: the state of a stream will be asked for.

    Raises:
        ConfigurationError: it is empty, or it cannot be divided over the ranks.
    """
    if isinstance(loader, CombinedLoader):
        parts = Parts(loader, strategy, seed, limit, "train", divide=divide, same=same_every_epoch, training=True)
        return Batches(parts, strategy, accumulation, 1.0, divided=True, resumable=resumable)
    if divide and has_positions(loader):
        return Positions(loader, strategy, accumulation, limit, seed, same_every_epoch)
    return Batches(loader, strategy, accumulation, limit, divided=not divide, resumable=resumable)


def limited(count: int, limit: int | float) -> int:
    """An int limits to that many, a float to that part.

    Raises:
        ConfigurationError: the part is less than one batch.
    """
    if isinstance(limit, int):
        return min(count, limit)
    part = int(count * limit)
    if part == 0 and limit > 0 and count > 0:
        raise ConfigurationError(
            f"{limit} of {count} batches is less than one: give at least {math.ceil(100 / count) / 100}, or a number "
            "of batches (an int)"
        )
    return part


class Parts:
    """Several loaders read together, this rank's part of each, as one iterable of trees of batches."""

    def __init__(
        self, loader: CombinedLoader, strategy: Strategy, seed: int, limit: int | float, purpose: str, *,
        divide: bool, same: bool, training: bool,
    ) -> None:  # fmt: skip
        numbers = iter(range(len(loader.flattened)))

        def part(user: Any) -> Any:
            number = next(numbers)
            if not (divide and has_positions(user)):
                return user
            remade = Remade(user, seed, same_every_epoch=same)
            return RankPart(remade, strategy, f"{purpose}/{number}", training=training)

        self._combined = loader.map(part)
        counts = [batch_count(user) for user in self._combined.flattened]
        if isinstance(limit, float) and limit < 1.0 and None in counts:
            raise ConfigurationError(
                f"{limit} is a part of a {purpose} loader of unknown length: give a number of batches (an int)"
            )
        self._combined.limits = [_limit(count, limit) for count in counts]

    def __len__(self) -> int:
        return len(self._combined)

    def set_epoch(self, epoch: int) -> None:
        self._combined.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _, _ in self._combined)


def _limit(count: int | None, limit: int | float) -> int | None:
    if count is None:
        return limit if isinstance(limit, int) else None
    return limited(count, limit)


class Positions:
    def __init__(
        self, loader: "DataLoader[Any]", strategy: Strategy, accumulation: int, limit: int | float, seed: int,
        same_every_epoch: bool = False,
    ) -> None:  # fmt: skip
        self.strategy = strategy
        self.limit = limit
        self._remade = Remade(loader, seed, same_every_epoch=same_every_epoch)
        self._drop_last = loader.drop_last
        self.shape = Shape(self._remade.batch_size * strategy.data_world_size, accumulation, self._remade.batch_size)
        self._measure()

    def _measure(self) -> None:
        total, size = len(self._remade), self.shape.round_size
        if total == 0:
            raise ConfigurationError("the training loader is empty: its dataset or sampler has no samples")
        rounds = total // size if self._drop_last else -(-total // size)
        if rounds == 0:
            raise ConfigurationError(
                f"the training loader has {total} samples, less than one batch of {size} over all ranks, and "
                "drop_last=True drops it: lower batch_size or take drop_last away"
            )
        self.rounds = limited(rounds, self.limit)
        self.end = min(total, self.rounds * size)

    def epoch(self, epoch: int, position: int, state: Any = None) -> Iterator[tuple[Micro, Any]]:
        plan = schedule(self.end, self.shape, self.strategy.data_world_size, self.strategy.data_rank, position)
        return self._remade.planned(epoch, plan, "train")

    def accumulate(self, rounds: int) -> None:
        self.shape = replace(self.shape, accumulation=rounds)

    def state(self) -> dict[str, Any]:
        return {
            "kind": "positions",
            "round_size": self.shape.round_size,
            "accumulation": self.shape.accumulation,
            "end": self.end,
            "seed": self._remade.seed,
        }

    def rank_state(self) -> Any:
        return None

    def follow(self, before: Source) -> None:
        if isinstance(before, Positions):
            shape, size = before.shape, self._remade.batch_size
            self.shape = replace(self.shape, round_size=max(shape.round_size * size // shape.batch_size, 1))
            self._measure()

    def check(self, state: dict[str, Any], world_size: int) -> None:
        _same_kind(state, "positions")
        self._remade.seed = state["seed"]
        self.shape = Shape(state["round_size"], state["accumulation"], self._remade.batch_size)
        self._measure()
        if self.end != state["end"]:
            raise ConfigurationError(
                f"the checkpoint was saved with {state['end']} samples in an epoch, now there are {self.end}: give the "
                "same data and limit_train_batches, or start with an empty checkpoint prefix"
            )

    def rounds_of(self, position: int) -> int:
        return -(-position // self.shape.round_size)

    def position_of(self, rounds: int) -> int:
        return min(rounds * self.shape.round_size, self.end)


class Batches:
    """Batches of a stream: a round is one batch of each rank."""

    def __init__(
        self, loader: Any, strategy: Strategy, accumulation: int, limit: int | float, *,
        divided: bool = False, resumable: bool = True,
    ) -> None:  # fmt: skip
        """`divided`: each rank's loader gives this rank's batches alone."""
        if strategy.data_world_size > 1 and isinstance(loader, DataLoader) and _sized(loader) and not divided:
            raise ConfigurationError(
                f"{strategy.data_world_size} ranks cannot divide a DataLoader with its own batch_sampler or "
                "__iter__, or with a sampler without length: give it a sampler with __len__ and a batch_size "
                "instead, or let it give each rank its own batches and say use_distributed_sampler=False"
            )
        self.strategy = strategy
        self._stream = Stream(loader, strategy, resumable=resumable)
        count = batch_count(loader)
        if count == 0:
            raise ConfigurationError("the training loader is empty: it has no batches")
        if isinstance(limit, float) and limit < 1.0 and count is None:
            raise ConfigurationError(
                f"limit_train_batches={limit} is a part of an unknown length: give a number of batches (an int)"
            )
        if count is not None:
            self.rounds: int | None = limited(count, limit)
        else:
            self.rounds = limit if isinstance(limit, int) else None
        self.shape = Shape(1, accumulation)

    def epoch(self, epoch: int, position: int, state: Any = None) -> Iterator[tuple[Micro, Any]]:
        return self._count(position, self._stream.batches(epoch, position, state))

    def _count(self, position: int, batches: Iterator[tuple[Any, bool]]) -> Iterator[tuple[Micro, Any]]:
        new = tuple.__new__  # as in `schedule`
        for index, (batch, last) in enumerate(batches, start=position + 1):
            last = last or index == self.rounds
            closes = last or index % self.shape.accumulation == 0
            yield new(Micro, (index - 1, index, 1.0, True, closes, index, batch_size_of(batch), last)), batch
            if last:
                return

    def accumulate(self, rounds: int) -> None:
        self.shape = replace(self.shape, accumulation=rounds)

    def state(self) -> dict[str, Any]:
        return {"kind": "stream", "accumulation": self.shape.accumulation}

    def rank_state(self) -> Any:
        return self._stream.state

    def follow(self, before: Source) -> None:
        """A round is one batch of each rank in any world."""

    def check(self, state: dict[str, Any], world_size: int) -> None:
        _same_kind(state, "stream")
        if world_size != self.strategy.data_world_size:
            raise ConfigurationError(
                f"a stream (an iterable dataset) that {world_size} ranks have read cannot be divided anew over "
                f"{self.strategy.data_world_size}: run with {world_size} ranks, or give a map-style dataset"
            )
        self.accumulate(state["accumulation"])

    def rounds_of(self, position: int) -> int:
        return position

    def position_of(self, rounds: int) -> int:
        return rounds


def batch_size_of(batch: Any) -> int:
    """The first dimension of the first tensor in the batch; 1 if there is none."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, list | tuple):
        return 1
    for part in batch:
        if isinstance(part, torch.Tensor | dict | list | tuple):
            return batch_size_of(part)
    return 1


def _sized(loader: "DataLoader[Any]") -> bool:
    return not isinstance(loader.dataset, IterableDataset)


def _same_kind(state: dict[str, Any], kind: str) -> None:
    words = {"positions": "a dataset with positions", "stream": "a stream (an iterable dataset)"}
    if state["kind"] != kind:
        raise ConfigurationError(
            f"the checkpoint was saved while training on {words[state['kind']]}, the script now gives {words[kind]}: "
            "give the same kind of loader, or start with an empty checkpoint prefix"
        )
