"""What the flags and the environment say about a launcher, read in one place."""

import argparse
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from everstep.errors import ConfigurationError
from everstep.launch.coordinators import Coordinator, GivenCoordinator, OwnCoordinator, address_towards
from everstep.launch.devices import count_cpus, count_gpus
from everstep.launch.lightning_alias import FOLDER
from everstep.launch.processes import Command
from everstep_protocol import env
from everstep_protocol.messages import Intent

#: Failed rounds that an own coordinator starts again when nobody says how many.
DEFAULT_RESTARTS = 3
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Settings:
    """Of one launcher, for as long as it lives. Times in seconds."""

    nproc: int
    node: int = -1  # -1: the coordinator gives one
    address: str = LOOPBACK  # where other nodes reach this one
    run_id: str = "none"
    pod: str = ""
    max_restarts: int = 0  # for TORCHELASTIC_MAX_RESTARTS: the coordinator spends the budget
    grace_seconds: float = 30.0  # from a stop to the killing of workers that do not leave
    give_up_seconds: float = 300.0  # without an answer from the coordinator and without workers
    termination_file: Path | None = None
    witness: tuple[str, int] | None = None  # host and port of who is there, on another node, if the coordinator is not
    environment: Mapping[str, str] = field(default_factory=dict)  # the workers' base


def read(args: argparse.Namespace, environment: Mapping[str, str]) -> tuple[Settings, Coordinator, Command]:
    """Settings, the coordinator to talk to (not started yet) and the user's command.

    Raises:
        ConfigurationError: flags and environment do not fit together; the message says which, and the way out.
    """
    kind = "module" if args.module else "program" if args.no_python else "script"
    command = Command(args.script, tuple(args.args), kind)
    nproc = workers_here(args.nproc_per_node, environment)
    url = None if args.standalone else _url(args, environment)
    _, nodes = args.nnodes
    if url is None and nodes > 1:
        way_out = "--standalone is for one" if args.standalone else "name it with --rdzv-endpoint HOST:PORT"
        raise ConfigurationError(
            f"{nodes} nodes need a coordinator that all of them reach (`everstep coordinator` starts one): {way_out}"
        )
    run_id = args.rdzv_id or environment.get(env.RUN_UID)
    coordinator: Coordinator
    if url is None:
        restarts = DEFAULT_RESTARTS if args.max_restarts is None else args.max_restarts
        run_id, node, address = run_id or uuid.uuid4().hex, 0, LOOPBACK
        asked = args.max_restarts is not None
        wish = Intent(nodes=1, min_nodes=1, max_restarts=restarts, run_uid=run_id, retry_start=asked)
        coordinator = OwnCoordinator(wish, environment)
    else:
        if args.max_restarts is not None:
            raise ConfigurationError("--max-restarts: the budget is the coordinator's; leave it out, or set it there")
        token = environment.get(env.TOKEN)
        if not token:
            raise ConfigurationError(f"the coordinator {url} wants the run's token: set {env.TOKEN}")
        run_id, node, restarts = run_id or "none", _node(args, environment), 0
        address = args.local_addr or environment.get(env.NODE_ADDRESS) or _address(url)
        coordinator = GivenCoordinator(url, token)
    if args.lightning_alias:
        path = environment.get("PYTHONPATH")
        environment = {**environment, "PYTHONPATH": f"{FOLDER}{os.pathsep}{path}" if path else str(FOLDER)}
    last_words = environment.get(env.TERMINATION_FILE)
    settings = Settings(
        nproc=nproc,
        node=node,
        address=address,
        run_id=run_id,
        pod=environment.get(env.POD, ""),
        max_restarts=restarts,
        grace_seconds=_seconds(environment, env.GRACE_SECONDS, 30.0),
        give_up_seconds=args.join_timeout,
        termination_file=Path(last_words) if last_words else None,
        witness=_api_server(environment),
        environment={**environment, env.COORDINATOR: coordinator.url, env.TOKEN: coordinator.token},
    )
    return settings, coordinator, command


def workers_here(wanted: str, environment: Mapping[str, str]) -> int:
    """--nproc-per-node as a number.

    Raises:
        ConfigurationError: gpus are wanted and there are none.
    """
    if wanted.isdigit():
        return int(wanted)
    gpus = 0 if wanted == "cpu" else count_gpus(environment)
    if wanted == "gpu" and gpus == 0:
        raise ConfigurationError("--nproc-per-node gpu: no NVIDIA device is visible here; give a number, or cpu")
    return gpus or count_cpus()


def _url(args: argparse.Namespace, environment: Mapping[str, str]) -> str | None:
    url = f"http://{args.rdzv_endpoint}" if args.rdzv_endpoint else environment.get(env.COORDINATOR)
    if not url:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme == "http" and parts.hostname and parts.port
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(f"{env.COORDINATOR}: {url!r} is not http://host:port")
    return url


def _address(url: str) -> str:
    parts = urlsplit(url)
    return address_towards(parts.hostname or LOOPBACK, parts.port or 80)


def _node(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    if args.node_rank is not None:
        return int(args.node_rank)
    text = environment.get(env.NODE, "-1")
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{env.NODE}: {text!r} is no node index") from None


def _api_server(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """As Kubernetes tells every container."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "")
    return (host, int(port)) if host and port.isdecimal() else None


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    try:
        return default if text is None else float(text)
    except ValueError:
        raise ConfigurationError(f"{name}: {text!r} is no number of seconds") from None
