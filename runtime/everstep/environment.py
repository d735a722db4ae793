"""What surrounds a worker process: its place among the ranks, its run, its checkpoints. The one place that reads it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from everstep.errors import ConfigurationError
from everstep_protocol import env as names


@dataclass(frozen=True)
class Environment:
    """A standalone `python train.py` has the defaults: one rank, no board, no checkpoint prefix."""

    # torchrun's variables
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    launched: bool = False  # by `everstep launch` or torchrun

    # the run
    run_name: str = ""
    run_namespace: str = ""
    run_uid: str = ""
    seed: int | None = None  # of the run, for scripts that set none
    generation: int = 1
    board: str | None = None  # path
    coordinator: str | None = None  # URL
    token: str = ""

    # checkpoints
    checkpoint_uri: str | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_keep: int | None = None
    checkpoint_resume: str = "auto"  # auto | never

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> "Environment":
        """Of the process's environment, or of the given mapping.

        Raises:
            ConfigurationError: a number is not one, or `resume` is neither auto nor never.
        """
        variables = os.environ if environ is None else environ

        def number(name: str, minimum: int = 0) -> int | None:
            text = variables.get(name, "")
            if not text:
                return None
            try:
                value = int(text)
            except ValueError:
                value = minimum - 1
            if value < minimum:
                raise ConfigurationError(f"{name} is {text!r}: it has to be a whole number, at least {minimum}")
            return value

        resume = variables.get(names.CHECKPOINT_RESUME) or "auto"
        if resume not in ("auto", "never"):
            raise ConfigurationError(f"{names.CHECKPOINT_RESUME} is {resume!r}: it has to be 'auto' or 'never'")
        world_size = number("WORLD_SIZE", 1) or 1
        rank = number("RANK") or 0
        if rank >= world_size:
            raise ConfigurationError(f"RANK is {rank}, but WORLD_SIZE is {world_size}")
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=number("LOCAL_RANK") or 0,
            local_world_size=number("LOCAL_WORLD_SIZE", 1) or 1,
            node_rank=number("GROUP_RANK") or 0,
            launched="RANK" in variables and "WORLD_SIZE" in variables,
            run_name=variables.get(names.RUN_NAME, ""),
            run_namespace=variables.get(names.RUN_NAMESPACE, ""),
            run_uid=variables.get(names.RUN_UID, ""),
            seed=number(names.SEED),
            generation=number(names.GENERATION, 1) or 1,
            board=variables.get(names.BOARD) or None,
            coordinator=variables.get(names.COORDINATOR) or None,
            token=variables.get(names.TOKEN, ""),
            checkpoint_uri=variables.get(names.CHECKPOINT_URI) or None,
            checkpoint_every_steps=number(names.CHECKPOINT_EVERY_STEPS, 1),
            checkpoint_keep=number(names.CHECKPOINT_KEEP, 1),
            checkpoint_resume=resume,
        )
