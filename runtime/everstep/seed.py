"""One seed for everything random in a script."""

import os
import random

import torch

from everstep import rng
from everstep.environment import Environment

_MAX = 2**32 - 1

#: Lightning's names, for what reads them in a script, and in the processes that it starts.
_VARIABLE, _OF_WORKERS = "PL_GLOBAL_SEED", "PL_SEED_WORKERS"

_chosen: int | None = None


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed python, numpy and torch in this process and return the seed.

    Args:
        seed: 0 .. 2^32-1; None takes that of the variable PL_GLOBAL_SEED, as an earlier call, also of the process that
            started this one, has set it; else the run's; else one at random.
        workers, verbose: accepted as Lightning's scripts pass them. DataLoader workers are always seeded: per sample,
            from (seed, epoch, position). Nothing is printed.

    Raises:
        ValueError: the seed is out of range.
    """
    global _chosen
    if seed is None and (text := os.environ.get(_VARIABLE, "")).isdigit():
        seed = int(text)
    if seed is None:
        seed = Environment.read().seed
    if seed is None:
        seed = random.SystemRandom().randint(0, _MAX)
    if not 0 <= seed <= _MAX:
        raise ValueError(f"seed {seed} is out of range: it has to be at least 0 and at most {_MAX}")
    rng.seed_generators(seed)
    os.environ[_VARIABLE], os.environ[_OF_WORKERS] = str(seed), str(int(workers))
    _chosen = seed
    return seed


def ensure_seeded(environment: Environment | None = None) -> None:
    """Give a script that seeds nothing the seed of its run. Called before anything of Everstep's draws a number."""
    # torch starts with 64 bits of the system's dice; a small seed comes from the script's own torch.manual_seed.
    if _chosen is None and torch.initial_seed() > _MAX:
        seed = (environment or Environment.read()).seed
        if seed is not None:
            seed_everything(seed % (_MAX + 1))


def chosen() -> int | None:
    """What seed_everything was last given in this process."""
    return _chosen


def run_seed() -> int:
    """The seed from which data order and worker randomness derive: of seed_everything, else of torch's generator."""
    return _chosen if _chosen is not None else torch.initial_seed() % 2**63
