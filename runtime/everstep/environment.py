"""What surrounds a worker process: its place among the ranks, its run, its checkpoints. The one place that reads it.

Who started the ranks is told from their variables: a launcher (`everstep launch`, torchrun) sets RANK, LOCAL_RANK and
WORLD_SIZE; Kubernetes job operators set RANK and WORLD_SIZE for the one process of each pod; `srun` sets SLURM_*.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from everstep.errors import ConfigurationError
from everstep_protocol import codec
from everstep_protocol import env as names
from everstep_protocol.checkpoints import Retention


@dataclass(frozen=True)
class Environment:
    """A standalone `python train.py` has the defaults: one rank, no board, no checkpoint prefix."""

    # the ranks
    kind: str = "single"  # launcher | kubernetes | slurm: who started them
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    num_nodes: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 29500

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
    checkpoint_retention: Retention = Retention()
    checkpoint_resume: str = "auto"  # auto | never

    @property
    def launched(self) -> bool:
        """The ranks are there already: this process is one of them."""
        return self.kind != "single"

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
        return cls(
            **_place(variables, number),
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
            checkpoint_retention=_retention(variables.get(names.CHECKPOINT_RETENTION, "")),
            checkpoint_resume=resume,
        )


def _retention(text: str) -> Retention:
    try:
        return codec.loads(Retention, text) if text else Retention()
    except codec.BadMessage as error:
        raise ConfigurationError(
            f"{names.CHECKPOINT_RETENTION} is not what the operator writes there: {error}"
        ) from None


def _place(variables: Mapping[str, str], number: Callable[..., int | None]) -> dict[str, Any]:
    """This process among the ranks, as whoever started them tells it."""
    master: dict[str, Any] = {
        "master_address": variables.get("MASTER_ADDR") or "127.0.0.1",
        "master_port": number("MASTER_PORT", 1) or 29500,
    }
    world_size, rank = number("WORLD_SIZE", 1) or 1, number("RANK") or 0
    if "RANK" in variables and "WORLD_SIZE" in variables:
        if rank >= world_size:
            raise ConfigurationError(f"RANK is {rank}, but WORLD_SIZE is {world_size}")
        one_per_pod = "LOCAL_RANK" not in variables and "KUBERNETES_SERVICE_HOST" in variables
        local_world_size = number("LOCAL_WORLD_SIZE", 1) or 1
        return {
            **master,
            "kind": "kubernetes" if one_per_pod else "launcher",
            "rank": rank,
            "world_size": world_size,
            "local_rank": number("LOCAL_RANK") or 0,
            "local_world_size": local_world_size,
            "node_rank": rank if one_per_pod else number("GROUP_RANK") or 0,
            "num_nodes": number("GROUP_WORLD_SIZE", 1) or -(-world_size // local_world_size),
        }
    tasks = number("SLURM_NTASKS", 1)
    # In an interactive allocation (`salloc`, a notebook) the variables are there, but srun has started no ranks.
    if tasks is not None and variables.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = number("SLURM_NNODES", 1) or 1
        hosts = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST") or ""
        # One port per job, so that two jobs on a node do not meet; outside of the ephemeral range.
        job = number("SLURM_JOB_ID") or 0
        if "MASTER_ADDR" not in variables and hosts:
            master["master_address"] = first_host(hosts)
        if "MASTER_PORT" not in variables:
            master["master_port"] = 15000 + job % 15000
        return {
            **master,
            "kind": "slurm",
            "rank": number("SLURM_PROCID") or 0,
            "world_size": tasks,
            "local_rank": number("SLURM_LOCALID") or 0,
            "local_world_size": number("SLURM_NTASKS_PER_NODE", 1) or -(-tasks // nodes),
            "node_rank": number("SLURM_NODEID") or 0,
            "num_nodes": nodes,
        }
    return master


def first_host(nodelist: str) -> str:
    """The first of SLURM's list of hosts: `gpu[07-09,12],login1` is gpu07, gpu08, …"""
    host = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    assert host is not None  # the expression matches the empty text too
    return f"{host[1]}{host[2] or ''}{host[3]}"
