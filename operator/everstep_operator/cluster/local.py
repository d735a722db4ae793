"""The local adapter: a pod is a process group on this machine, a cluster is a state folder (cluster/state.py).

What it adds to a pod is what a cluster adds: the coordinator's address and the token, this node's address, the place of
the termination message, and a PATH in which `python` is the interpreter that runs Everstep.
"""

import asyncio
import http.client
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.cluster import shim
from everstep_operator.cluster.port import AlreadyExists, ClusterError, Conflict, Event, NotFound, RunKey
from everstep_operator.cluster.process import LEASE_SECONDS, Process, ProcessState, kill_remains
from everstep_operator.cluster.state import StateFolder
from everstep_operator.plan import model
from everstep_operator.plan.model import Pod, PodSpec
from everstep_protocol import codec, env, labels, messages
from everstep_protocol.messages import Intent, Report
from everstep_protocol.reasons import Failure
from everstep_protocol.version import HEADER, PROTOCOL_VERSION

ADDRESS = "127.0.0.1"

#: Variables that a pod must not inherit from the shell of `everstep run`: another run's, or another launcher's.
_FOREIGN = ("EVERSTEP_", "PET_", "TORCHELASTIC_")


@dataclass(frozen=True)
class _Card:
    """pod.json: what a pod is, beside what its shim has to know."""

    name: str
    uid: str
    run_uid: str
    role: str
    node: int | None
    attempt: int


class LocalCluster:
    """Implements cluster/port.py for the one run of a state folder that this process holds."""

    def __init__(
        self,
        state: StateFolder,
        *,
        working_dir: Path,
        store_env: Mapping[str, str] | None = None,
        lease_seconds: float = LEASE_SECONDS,
        resync_seconds: float = 5.0,
    ) -> None:
        """`working_dir`: of pods whose spec names none. `store_env`: address and credentials for checkpoints."""
        self.state = state
        self.working_dir = working_dir
        self.store_env = dict(store_env or {})
        self.lease_seconds = lease_seconds
        self.resync_seconds = resync_seconds
        self._watchers: set[asyncio.Queue[Event]] = set()
        self._tracked: dict[int, int] = {}  # pid of a shim: a pidfd that tells of its end
        self._gone: set[str] = set()  # folders of pods that are over and deleted
        self._coordinator = _Coordinator()
        self._last_report: Report | None = None

    # The run.

    async def get_run(self, key: RunKey) -> TrainingRun:
        run = self.state.read()
        if run is None or (run.metadata.namespace, run.metadata.name) != (key.namespace, key.name):
            raise NotFound(f"there is no run {key} in {self.state.path}")
        # What lies in a state folder is deleted by its owner, and only by him.
        return run.model_copy(update={"spec": run.spec.model_copy(update={"ttl_seconds_after_finished": None})})

    async def save_status(self, run: TrainingRun, status: Status) -> TrainingRun:
        return self.state.save_status(run, status)

    async def delete_run(self, run: TrainingRun) -> None:
        self.state.delete(run)

    async def post_events(self, run: TrainingRun, events: tuple[model.Event, ...]) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), (self.state.path / "events.log").open("a") as log:
            log.writelines(f"{time} {event.type} {event.reason}: {event.message}\n" for event in events)

    # Pods.

    async def list_pods(self, run: TrainingRun) -> list[Pod]:
        return [pod for card, process in self._processes(run) if (pod := self._observe(card, process)) is not None]

    async def create_pod(self, run: TrainingRun, spec: PodSpec) -> Pod:
        folder = self.state.pods / spec.name
        held = _card(folder)
        if held is not None:
            if self._observe(held, Process(folder)) is not None:
                raise AlreadyExists(f"a pod {spec.name} is there already")
            folder.rename(folder.with_name(f".{spec.name}.{held.uid}"))  # the log of the one that had the name
            self._gone.discard(spec.name)
        run_uid = run.metadata.uid
        card = _Card(spec.name, uuid.uuid4().hex, run_uid, spec.role, spec.node, spec.attempt)
        process = Process(folder)
        working_dir = self.working_dir / spec.working_dir if spec.working_dir else self.working_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shim.write(str(folder / "pod.json"), codec.encode(card))
            await asyncio.to_thread(
                process.start,
                self._command(spec),
                self._env(run, spec, folder),
                working_dir,
                self.state.lease,
                self.lease_seconds,
            )
        except OSError as error:
            raise ClusterError(f"the pod {spec.name} cannot be started: {error.strerror}: {error.filename}") from None
        except subprocess.SubprocessError:
            raise ClusterError(f"the pod {spec.name} cannot be started; see {folder / 'shim.log'}") from None
        pod = self._observe(card, process)
        assert pod is not None  # nobody could have deleted it yet
        return pod

    async def delete_pod(self, run: TrainingRun, name: str, uid: str, grace_seconds: float) -> None:
        card, process = self._find(run, name)
        if card.uid != uid:
            raise Conflict(f"the pod {name} has uid {card.uid}, not {uid}")
        process.end(grace_seconds)

    def _find(self, run: TrainingRun, name: str) -> tuple[_Card, Process]:
        for card, process in self._processes(run):
            if card.name == name and self._observe(card, process) is not None:
                return card, process
        raise NotFound(f"there is no pod {name}")

    def _processes(self, run: TrainingRun) -> list[tuple[_Card, Process]]:
        """Those of the run's uid that are not known to be gone, by name."""
        found = []
        for folder in sorted(self.state.pods.iterdir()):
            if folder.name in self._gone or folder.name.startswith("."):
                continue
            card = _card(folder)
            if card is not None and card.run_uid == run.metadata.uid:
                found.append((card, Process(folder)))
        return found

    def _observe(self, card: _Card, process: Process) -> Pod | None:
        """The pod as it is now; None if it was deleted and is over."""
        state = process.state()
        if state.finished and state.exit_code is None and not (state.rebooted or state.stillborn):
            kill_remains({env.RUN_UID: card.run_uid, env.POD: card.name})
        if state.finished and state.ending:
            self._gone.add(card.name)
            return None
        if state.shim_pid is not None:
            self._track(state.shim_pid)
        return Pod(
            name=card.name,
            uid=card.uid,
            role=card.role,
            node=card.node,
            attempt=card.attempt,
            phase=state.phase,
            terminating=state.ending,
            exit_code=state.exit_code,
            failure=_failure(process.folder),
            message=_message(state),
            disrupted=_is_disrupted(state),
            run_uid=card.run_uid,
            created=datetime.fromtimestamp((process.folder / "pod.json").stat().st_mtime, UTC),  # it is written once
        )

    def _command(self, spec: PodSpec) -> list[str]:
        command = list(spec.command)
        if command[0] == "everstep":  # this one, wherever its script lies; -P: never a module from the working folder
            command[:1] = [sys.executable, "-P", "-m", "everstep.cli"]
        if spec.role == labels.COORDINATOR:
            nobody_knows = not any(_card_alive(folder) for folder in self.state.pods.iterdir())
            command += ["--host", ADDRESS, "--port", str(self.state.port(may_change=nobody_knows))]
        return command

    def _env(self, run: TrainingRun, spec: PodSpec, folder: Path) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_FOREIGN) and name not in env.TORCHRUN
        }
        variables = {**inherited, **self.store_env, **spec.env}
        bin_folder = str(Path(sys.executable).parent)
        return variables | {
            "PATH": f"{bin_folder}{os.pathsep}{variables.get('PATH', os.defpath)}",
            env.COORDINATOR: f"http://{ADDRESS}:{self.state.port()}",
            env.TOKEN: self.state.token(),
            env.NODE_ADDRESS: ADDRESS,
            env.RUN_UID: run.metadata.uid,
            env.POD: spec.name,
            env.TERMINATION_FILE: str(folder / "termination.json"),
            env.GRACE_SECONDS: str(spec.grace_seconds),
        }

    # The coordinator.

    async def get_report(self, run: TrainingRun) -> Report | None:
        return await self._ask(run, "GET", messages.PROGRESS, None)

    async def send_intent(self, run: TrainingRun, intent: Intent) -> Report | None:
        return await self._ask(run, "PUT", messages.INTENT, codec.dumps(intent))

    async def _ask(self, run: TrainingRun, method: str, path: str, body: bytes | None) -> Report | None:
        running = (
            card.role == labels.COORDINATOR and process.state().phase == "Running"
            for card, process in self._processes(run)
        )
        if not any(running):
            return None  # whoever listens on that port now is somebody else
        request = (self.state.port(), self.state.token(), method, path, body)
        report = await asyncio.to_thread(self._coordinator.ask, *request)
        self._last_report = report or self._last_report
        return report

    def last_failure(self) -> Failure | None:
        """The newest failure that the coordinator told of, or else a pod, deleted ones included."""
        if self._last_report is not None and self._last_report.failures:
            return self._last_report.failures[-1]
        words = self.state.pods.glob("*/termination.json")
        newest = max(words, key=lambda path: path.stat().st_mtime, default=None)
        return None if newest is None else _failure(newest.parent)

    # Events.

    async def watch(self) -> AsyncIterator[Event]:
        run = self.state.read()
        if run is None:
            raise NotFound(f"there is no run in {self.state.path}")
        key = RunKey(run.metadata.namespace, run.metadata.name)
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while True:
                try:
                    # Not wait_for: until Python 3.12 it may swallow the cancellation of a watch.
                    async with asyncio.timeout(self.resync_seconds):
                        event = await queue.get()
                except TimeoutError:
                    event = Event(key, "resync")
                yield event
        finally:
            self._watchers.discard(queue)

    def _track(self, shim_pid: int) -> None:
        """Tell the watchers when this shim ends, and with it its pod. Where the kernel cannot, the resync does."""
        if shim_pid in self._tracked:
            return
        try:
            descriptor = os.pidfd_open(shim_pid)
        except OSError:
            return
        self._tracked[shim_pid] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, shim_pid)

    def _ended(self, shim_pid: int) -> None:
        self._forget(shim_pid)
        run = self.state.read()
        if run is not None:
            for queue in self._watchers:
                queue.put_nowait(Event(RunKey(run.metadata.namespace, run.metadata.name), "pod"))

    def _forget(self, shim_pid: int) -> None:
        descriptor = self._tracked.pop(shim_pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Let go of what this process has open. The pods are not touched."""
        for shim_pid in list(self._tracked):
            self._forget(shim_pid)
        self._coordinator.close()


class _Coordinator:
    """One kept connection to it; used from threads, by one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._port = 0

    def ask(self, port: int, token: str, method: str, path: str, body: bytes | None) -> Report | None:
        """Its report; None if nobody answers, or not with one."""
        headers = {
            "Authorization": f"Bearer {token}",
            HEADER: str(PROTOCOL_VERSION),
            "Content-Type": "application/json",
        }
        with self._lock:
            for _ in range(2):  # a kept connection may have been closed since
                fresh = self._connection is None or self._port != port
                if self._connection is None or fresh:
                    self.close()
                    self._connection = http.client.HTTPConnection(ADDRESS, port, timeout=3)
                    self._port = port
                try:
                    self._connection.request(method, path, body, headers)
                    reply = self._connection.getresponse()
                    text = reply.read()
                    return codec.loads(Report, text) if reply.status == 200 else None
                except (OSError, http.client.HTTPException, codec.BadMessage):
                    self.close()
                    if fresh:
                        return None
        return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _card(folder: Path) -> _Card | None:
    """None while the folder is no pod (yet)."""
    data = shim.read(str(folder / "pod.json"))
    return None if data is None else codec.decode(_Card, data)


def _card_alive(folder: Path) -> bool:
    return _card(folder) is not None and not Process(folder).state().finished


def _failure(folder: Path) -> Failure | None:
    try:
        return codec.loads(Failure, (folder / "termination.json").read_text())
    except (OSError, codec.BadMessage):
        return None


def _is_disrupted(state: ProcessState) -> bool:
    """It had to go for a reason that is not its own."""
    return state.by_lease or state.rebooted or state.stillborn


def _message(state: ProcessState) -> str:
    if state.phase == "Pending":
        return "its process is being started"
    if state.rebooted:
        return "the machine was restarted"
    if state.stillborn:
        return "the `everstep run` that was starting it is gone"
    if state.by_lease:
        return "it ended itself because no `everstep run` was there to look after it"
    if state.finished and state.exit_code is None:
        return "its processes were killed, its shim with them"
    return ""
