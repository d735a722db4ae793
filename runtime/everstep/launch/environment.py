"""The environment of a worker: torchrun's variables, and ours (everstep_protocol.env)."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from everstep_protocol import env
from everstep_protocol.messages import Round

#: Fixed, because sums depend on the number of threads and a resumed run may find a machine with another one.
DEFAULT_THREADS = "1"


def worker_environment(
    base: Mapping[str, str],
    round: Round,
    *,
    local_rank: int,
    nproc: int,
    run_id: str,
    max_restarts: int,
    board: Path,
    failure_file: Path,
) -> dict[str, str]:
    """What a worker of this round finds in os.environ. Values that the user has set for threads and seeds stay."""
    rank = round.rank_offset + local_rank
    seed = seed_of(base.get(env.RUN_UID) or run_id)
    defaults = {
        "OMP_NUM_THREADS": DEFAULT_THREADS,
        "PYTHONHASHSEED": str(seed),
        "PYTHONUNBUFFERED": "1",  # the last words of a killed worker would stay in its buffer
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # as torchrun
        env.SEED: str(seed),
    }
    fixed = {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": round.world_size,
        "LOCAL_WORLD_SIZE": nproc,
        "GROUP_RANK": round.node_rank,
        "GROUP_WORLD_SIZE": round.nodes,
        "ROLE_NAME": "default",
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": round.world_size,
        "MASTER_ADDR": round.master_address,
        "MASTER_PORT": round.master_port,
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": round.restarts,
        "TORCHELASTIC_MAX_RESTARTS": max_restarts,
        "TORCHELASTIC_USE_AGENT_STORE": False,  # rank 0 itself opens the store at MASTER_ADDR:MASTER_PORT
        env.GENERATION: round.generation,
        env.BOARD: board,
        env.FAILURE_FILE: failure_file,
    }
    return {**defaults, **base, **{name: str(value) for name, value in fixed.items()}}


def seed_of(run: str) -> int:
    """A seed that belongs to the run: the same on every node and after every restart. 31 bits, never 0."""
    # PYTHONHASHSEED=0 would switch hash randomisation off instead of seeding it.
    return int.from_bytes(hashlib.sha256(run.encode()).digest()[:4], "big") % (2**31 - 1) + 1
