"""The schedule: which samples of an epoch make up which micro-batch of which rank. Pure arithmetic on positions.

A *round* is what all ranks of the first world took together: batch_size x first world samples, the last one may be
smaller. A *window* is `accumulation` rounds and one optimizer step. Both stay when the world changes: each round is
divided over the ranks that exist, in micro-batches of at most `batch_size`. Weights make the mean of the ranks'
gradients that of the mean over the round's samples, each counted once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Micro(NamedTuple):
    """One forward and backward of one rank, on the samples at [start, stop) of the epoch's order."""

    start: int
    stop: int
    weight: float  # of its mean loss in the round; 0: the sample is a repetition that only keeps the ranks in step
    closes_round: bool  # it is this rank's last of its round
    closes_step: bool  # … of its window: the optimizer steps
    round_stop: int  # samples of the epoch that are consumed when its round is
    samples: int  # that it counts for; 0: a repetition
    closes_epoch: bool  # … of the epoch


@dataclass(frozen=True)
class Shape:
    """The shape of training batches. `round_size` and `accumulation` are the reference: they outlive a world."""

    round_size: int  # samples
    accumulation: int = 1  # rounds in a window
    batch_size: int = 1  # most samples in one micro-batch

    @property
    def window(self) -> int:
        """Samples of one optimizer step."""
        return self.round_size * self.accumulation


def share(start: int, stop: int, world: int, rank: int) -> tuple[int, int]:
    """The rank's contiguous part of [start, stop): parts differ by at most one sample, the earlier ranks have more."""
    each, extra = divmod(stop - start, world)
    first = start + rank * each + min(rank, extra)
    return first, first + each + (rank < extra)


def schedule(samples: int, shape: Shape, world: int, rank: int, consumed: int = 0) -> Iterator[Micro]:
    """Micro-batches of `rank` for the rest of an epoch of `samples`, from the step boundary `consumed` on.

    Every rank gets the same number of micro-batches.

    Raises:
        ValueError: `consumed` is no step boundary.
    """
    if consumed != samples and consumed % shape.window:
        raise ValueError(f"{consumed} samples is no boundary of steps of {shape.window} samples")
    round_size, window = shape.round_size, shape.window
    whole = _parts(round_size, shape.batch_size, world, rank)
    new = tuple.__new__  # what a NamedTuple's own constructor does, at half the cost
    for start in range(consumed, samples, round_size):
        stop = start + round_size
        parts = whole
        if stop > samples:
            stop = samples
            parts = _parts(stop - start, shape.batch_size, world, rank)
        closes_epoch = stop == samples
        closes_step = closes_epoch or stop % window == 0
        for a, b, count, weight, final in parts:
            micro = (start + a, start + b, weight, final, closes_step and final, stop, count, closes_epoch and final)
            yield new(Micro, micro)


def _parts(size: int, batch_size: int, world: int, rank: int) -> list[tuple[int, int, int, float, bool]]:
    """The rank's micro-batches in a round of so many samples: from, to, samples, weight, is it the last?"""
    first, last = share(0, size, world, rank)
    largest = -(-size // world)
    count = -(-largest // batch_size)
    parts = []
    for index in range(count):
        a, b = share(first, last, count, index)
        # A rank without a sample repeats the round's first one, so that collectives match.
        place = (a, b) if b > a else (0, 1)
        parts.append((*place, b - a, world * (b - a) / size, index == count - 1))
    return parts


def evaluation(samples: int, batch_size: int, world: int, rank: int) -> Iterator[Micro]:
    """Batches of `rank` in an evaluation: each sample once, nothing repeated; ranks may differ by one batch."""
    for micro in schedule(samples, Shape(batch_size * world, 1, batch_size), world, rank):
        if micro.weight > 0:
            yield micro
