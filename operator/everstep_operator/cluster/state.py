"""The state folder of one local run: the object, who holds it, and what has to stay the same over a restart.

run.json     the TrainingRun with uid, resourceVersion and status
lock         held (flock) by the `everstep run` in charge; its content says who that is
lease        identity of that process, for the shims (cluster/shim.py)
token        the run's bearer token
port         where the coordinator listens on the loopback interface: the run's "Service"
store.json   whether the embedded S3 server keeps the checkpoints
events.log   what happened to the run, a line each, for people
pods/        one folder per pod (cluster/process.py)
s3/          the embedded S3 server, if the run has one (cluster/s3.py)
"""

import fcntl
import json
import os
import random
import secrets
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.cluster import shim
from everstep_operator.cluster.port import ClusterError, Conflict, NotFound


class Held(ClusterError):
    """Another `everstep run` is in charge of this state folder."""


class StateFolder:
    """Opened by one `everstep run` at a time; `take` makes this process the one in charge."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    @property
    def lease(self) -> Path:
        return self.path / "lease"

    @property
    def pods(self) -> Path:
        return self.path / "pods"

    def take(self) -> None:
        """Become the one in charge, until `release` or death.

        Raises:
            Held: somebody else is; the message says who. ClusterError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.pods.mkdir(exist_ok=True)
            lock = open(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644), "r+")  # noqa: SIM115
        except OSError as error:
            raise ClusterError(f"the state folder {self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read().strip() or "another process"
            lock.close()
            raise Held(holder) from None
        me = shim.identity(os.getpid())
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, since {datetime.now().strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        self._lock = lock
        shim.write(str(self.lease), me)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # The object.

    def read(self) -> TrainingRun | None:
        """The object as it is kept; None before `create`.

        Raises:
            ClusterError: run.json is no TrainingRun.
        """
        path = self.path / "run.json"
        try:
            data = json.loads(path.read_text())
            return TrainingRun.model_validate(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ClusterError(f"{path} cannot be read ({first}); remove {self.path} to start afresh") from None

    def create(self, run: TrainingRun) -> TrainingRun:
        """Keep a new object: it gets its uid, its first resourceVersion and its date."""
        return self._write(
            run, uid=str(uuid.uuid4()), resource_version="1", generation=1, creation_timestamp=datetime.now(UTC)
        )

    def replace_spec(self, run: TrainingRun) -> TrainingRun:
        """Give the kept object the spec, labels and annotations of `run`."""
        kept = self._kept()
        labels, annotations = run.metadata.labels, run.metadata.annotations
        return self._write(
            kept.model_copy(update={"spec": run.spec}),
            resource_version=_next(kept),
            generation=kept.metadata.generation + (run.spec != kept.spec),
            labels=labels,
            annotations=annotations,
        )

    def save_status(self, run: TrainingRun, status: Status) -> TrainingRun:
        """As the port says. Raises Conflict, NotFound."""
        kept = self._kept()
        if kept.metadata.uid != run.metadata.uid:
            raise NotFound(f"there is no run {run.metadata.name} with uid {run.metadata.uid}")
        if kept.metadata.resource_version != run.metadata.resource_version:
            raise Conflict(
                f"the run is at version {kept.metadata.resource_version}, this change was made for version "
                f"{run.metadata.resource_version}"
            )
        return self._write(kept.model_copy(update={"status": status}), resource_version=_next(kept))

    def delete(self, run: TrainingRun) -> None:
        """Forget the object of this uid. The folders of its pods, with their logs, stay. Raises NotFound, Conflict."""
        kept = self._kept()
        if kept.metadata.uid != run.metadata.uid:
            raise Conflict(f"the run {kept.metadata.name} has uid {kept.metadata.uid}, not {run.metadata.uid}")
        (self.path / "run.json").unlink()

    def _kept(self) -> TrainingRun:
        kept = self.read()
        if kept is None:
            raise NotFound(f"there is no run in {self.path}")
        return kept

    def _write(self, run: TrainingRun, **metadata: Any) -> TrainingRun:
        run = run.model_copy(update={"metadata": run.metadata.model_copy(update=metadata)})
        try:
            shim.write(str(self.path / "run.json"), run.model_dump(mode="json", by_alias=True, exclude_none=True))
        except OSError as error:
            raise ClusterError(f"{self.path}/run.json cannot be written: {error.strerror}") from None
        return run

    # What stays the same over a restart.

    def token(self) -> str:
        """The run's bearer token, made once."""
        path = self.path / "token"
        if not path.exists():
            shim.write(str(path), secrets.token_urlsafe(32))
        kept: str = json.loads(path.read_text())
        return kept

    def embeds(self, store: str, wanted: bool) -> bool:
        """Whether the embedded server keeps what goes to `store`: as it was `wanted` when that was new."""
        path = str(self.path / "store.json")
        kept: dict[str, Any] | None = shim.read(path)
        if kept is None or kept["store"] != store:
            shim.write(path, kept := {"store": store, "embedded": wanted})
        return bool(kept["embedded"])

    def port(self, *, may_change: bool = False) -> int:
        """The coordinator's port, chosen once. `may_change`: nobody knows it yet, so take another if it is busy."""
        path = self.path / "port"
        kept: dict[str, Any] | None = shim.read(str(path))
        if kept is None or (may_change and not _is_free(kept["port"])):
            shim.write(str(path), kept := {"port": free_ports(1)[0]})
        return int(kept["port"])


def _next(run: TrainingRun) -> str:
    return str(int(run.metadata.resource_version or 0) + 1)


def free_ports(count: int) -> list[int]:
    """Distinct free loopback ports below the kernel's ephemeral range, from which any connection could take one."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(min(20_000, first_ephemeral - 5_000), first_ephemeral)
    dice = random.Random(f"{os.getpid()}/{time.monotonic_ns()}")
    found: list[int] = []
    for port in dice.sample(candidates, len(candidates)):
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
