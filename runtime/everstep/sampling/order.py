"""The order of an epoch: what the user's own sampler yields under a seed, the same on every rank and at every call."""

from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from everstep import rng


def order(sampler: Any, seed: int, epoch: int) -> list[int]:
    """Dataset indices of epoch `epoch` (0 ..) in order. The process's generators are left as they were."""
    if isinstance(sampler, SequentialSampler):
        return list(range(len(sampler)))
    if isinstance(sampler, DistributedSampler):  # it would yield one rank's part, padded: the split is ours
        data: Any = sampler.dataset
        sampler = RandomSampler(data) if sampler.shuffle else SequentialSampler(data)
    generator = getattr(sampler, "generator", None)
    if isinstance(generator, torch.Generator):  # the user's own: its state is in no checkpoint
        generator.manual_seed(rng.derive(seed, "order", epoch))
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    with rng.forked(rng.derive(seed, "order", epoch)):
        return [int(index) for index in sampler]
