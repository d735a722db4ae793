"""The local adapter: the conformance suite, and what is its own (shim, lease, lock, state folder)."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from everstep_operator.api.trainingrun import Phase, TrainingRun
from everstep_operator.cluster import shim
from everstep_operator.cluster.local import LocalCluster
from everstep_operator.cluster.port import Cluster, ClusterError
from everstep_operator.cluster.process import Process
from everstep_operator.cluster.state import Held, StateFolder, free_ports
from everstep_operator.plan.model import Pod
from tests.cluster.conformance import POLITE, STUBBORN, Conformance, finished, pod, ready, story


def manifest(name: str = "first") -> TrainingRun:
    return TrainingRun.model_validate(
        {"metadata": {"name": name}, "spec": {"trainer": {"command": ["python", "train.py"]}}}
    )


class LocalWorld:
    """A state folder, held by this test."""

    lease_seconds = 40.0
    seconds = 30.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = StateFolder(folder / "state")
        self.state.take()
        self.run = self.state.create(manifest())

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Cluster]:
        cluster = LocalCluster(
            self.state, working_dir=self.folder, lease_seconds=self.lease_seconds, resync_seconds=0.3
        )
        try:
            yield cluster
        finally:
            cluster.close()

    def log(self, pod: Pod) -> str:
        path = self.process(pod.name).log
        return path.read_text() if path.exists() else ""

    def another_uid(self) -> TrainingRun:
        return self.run.model_copy(update={"metadata": self.run.metadata.model_copy(update={"uid": "another"})})

    def process(self, name: str) -> Process:
        return Process(self.state.pods / name)

    def end(self) -> None:
        for folder in self.state.pods.iterdir():
            process = Process(folder)
            if not process.state().finished:
                process.end(0)
                wait_for(lambda process=process: process.state().finished)
        self.state.release()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LocalWorld]:
    world = LocalWorld(tmp_path)
    yield world
    world.end()


def wait_for(question: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    return shim.identity(pid) is not None


class TestLocalCluster(Conformance):
    """All that every adapter does."""

    # And what a process group makes of it.

    @story
    async def test_nothing_of_a_pod_is_left(self, world: LocalWorld, cluster: Cluster) -> None:  # type: ignore[override]
        """Background jobs, also in a session of their own, die with the pod's first process."""
        created = await cluster.create_pod(
            world.run,
            pod(world, "sleep 60 & setsid sleep 61 & sh -c 'setsid sleep 62 &'; sleep 0.2; echo ready; sleep 63"),
        )
        await ready(world, created)
        below = shim.descendants(world.process(created.name).state().shim_pid or 0)
        assert len(below) == 5
        os.kill(json.loads((world.state.pods / created.name / "process.json").read_text())["pid"], signal.SIGKILL)
        assert (await finished(cluster, world.run)).exit_code == 137
        assert not [pid for pid in below if is_running(pid)]

    @story
    async def test_a_killed_shim_takes_its_pod_along(self, world: LocalWorld, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, "setsid sleep 600 & echo ready; wait"))
        await ready(world, created)
        shim_pid = world.process(created.name).state().shim_pid or 0
        below = shim.descendants(shim_pid)
        os.kill(shim_pid, signal.SIGKILL)
        dead = await finished(cluster, world.run)
        assert (dead.phase, dead.exit_code, dead.disrupted) == ("Failed", None, False)
        assert "killed" in dead.message
        wait_for(lambda: not [pid for pid in below if is_running(pid)])

    @story
    async def test_a_pid_that_is_somebody_elses_now_is_not_the_pod(self, world: LocalWorld, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, POLITE))
        path = world.state.pods / created.name / "shim.json"
        real = json.loads(path.read_text())
        shim.write(str(path), real | {"started": real["started"] - 1})
        (seen,) = await cluster.list_pods(world.run)
        assert seen.phase == "Failed"
        shim.write(str(path), real)

    @story
    async def test_after_a_reboot_its_pods_count_as_disrupted(self, world: LocalWorld, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, POLITE))
        path = world.state.pods / created.name / "shim.json"
        real = json.loads(path.read_text())
        shim.write(str(path), real | {"boot": "the one before"})
        (seen,) = await cluster.list_pods(world.run)
        assert (seen.phase, seen.disrupted, seen.message) == ("Failed", True, "the machine was restarted")
        shim.write(str(path), real)

    @story
    async def test_a_pod_whose_starter_died_was_never_there(self, world: LocalWorld, cluster: Cluster) -> None:
        """`everstep run` was killed between two lines of create_pod."""
        created = await cluster.create_pod(world.run, pod(world, "exit 0"))
        await finished(cluster, world.run)
        folder = world.state.pods / created.name
        for name in ("spec.json", "shim.json", "exit.json"):
            (folder / name).unlink()
        (seen,) = await cluster.list_pods(world.run)
        assert (seen.phase, seen.disrupted) == ("Pending", False), "it may be on its way"
        os.utime(folder / "pod.json", (0, 0))
        (seen,) = await cluster.list_pods(world.run)
        assert (seen.phase, seen.disrupted) == ("Failed", True)
        await cluster.delete_pod(world.run, created.name, created.uid, 5)
        assert await cluster.list_pods(world.run) == []

    @story
    async def test_a_watch_can_be_given_up_at_any_moment(self, world: LocalWorld, cluster: Cluster) -> None:
        """Also when the event and the cancellation come together."""
        for _ in range(5):
            created = await cluster.create_pod(world.run, pod(world, "exit 0"))

            async def listen() -> None:
                async for _ in cluster.watch():
                    pass

            listener = asyncio.create_task(listen())
            await finished(cluster, world.run)
            listener.cancel()
            with pytest.raises(asyncio.CancelledError):
                await listener
            await cluster.delete_pod(world.run, created.name, created.uid, 0)

    @story
    async def test_the_environment_of_a_pod(self, world: LocalWorld, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, "env; command -v python"))
        await finished(cluster, world.run)
        lines = world.log(created).splitlines()
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
        assert variables["EVERSTEP_COORDINATOR"] == f"http://127.0.0.1:{world.state.port()}"
        assert variables["EVERSTEP_TOKEN"] == world.state.token()
        assert variables["EVERSTEP_NODE_ADDRESS"] == "127.0.0.1"
        assert variables["HOME"] == os.environ["HOME"], "a local pod lives in its user's world"
        assert lines[-1] == str(Path(sys.executable).parent / "python")

    @story
    async def test_variables_of_another_launcher_stay_outside(self, world: LocalWorld, cluster: Cluster) -> None:
        os.environ.update(RANK="7", EVERSTEP_BOARD="/x", TORCHELASTIC_RUN_ID="other")
        try:
            created = await cluster.create_pod(world.run, pod(world, "env"))
        finally:
            for name in ("RANK", "EVERSTEP_BOARD", "TORCHELASTIC_RUN_ID"):
                del os.environ[name]
        await finished(cluster, world.run)
        assert not [
            line
            for line in world.log(created).splitlines()
            if line.startswith(("RANK=", "EVERSTEP_BOARD", "TORCHELASTIC"))
        ]

    @story
    async def test_secrets_are_the_owners_only(self, world: LocalWorld, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, pod(world, "exit 0"))
        world.state.token()
        for path in (world.state.path / "token", world.state.pods / "first-0-1" / "spec.json"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


# The lease.


class ShortLease(LocalWorld):
    lease_seconds = 1.0


def orphan(world: LocalWorld, script: str) -> tuple[Process, set[int]]:
    """A pod whose `everstep run` has gone: the lease names a process that has ended."""

    async def start() -> None:
        async with world.connect() as cluster:
            await ready(world, await cluster.create_pod(world.run, pod(world, script)))

    asyncio.run(start())
    process = world.process("first-0-1")
    below = shim.descendants(process.state().shim_pid or 0)
    ended = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    who = shim.identity(ended.pid)
    ended.communicate()
    shim.write(str(world.state.lease), who)
    return process, below


def test_without_everstep_run_a_pod_ends_itself(tmp_path: Path) -> None:
    world = ShortLease(tmp_path)
    process, below = orphan(world, "trap 'echo saved; exit 85' TERM; setsid sleep 600 & echo ready; wait")
    wait_for(lambda: process.state().finished)
    assert process.state().exit_code == 85
    assert process.state().by_lease
    assert process.log.read_text() == "ready\nsaved\n"
    assert not [pid for pid in below if is_running(pid)]

    async def look() -> list[Pod]:
        async with world.connect() as cluster:
            return await cluster.list_pods(world.run)

    (seen,) = asyncio.run(look())
    assert seen.disrupted, "no failure of the run: nothing is counted"
    world.end()


def test_a_pod_that_ignores_sigterm_is_killed_after_the_lease(tmp_path: Path) -> None:
    world = ShortLease(tmp_path)
    state = world.state.path
    process = Process(state / "pods" / "stubborn")
    process.start(["sh", "-c", STUBBORN], dict(os.environ), tmp_path, tmp_path / "nobody", 0.2, lease_grace=0.5)
    wait_for(lambda: process.state().finished)
    assert process.state().exit_code == 137
    world.end()


def test_a_pod_lives_on_when_everstep_run_comes_back_in_time(tmp_path: Path) -> None:
    world = ShortLease(tmp_path)
    world.lease_seconds = 6.0
    process, _ = orphan(world, POLITE)
    main = shim.read(str(process.folder / "process.json"))
    time.sleep(1.5)
    shim.write(str(world.state.lease), shim.identity(os.getpid()))
    time.sleep(6)
    assert process.state().phase == "Running"
    assert shim.alive(main)
    world.end()


def test_a_removed_state_folder_ends_its_pods(tmp_path: Path) -> None:
    import shutil

    world = ShortLease(tmp_path)
    _, below = orphan(world, POLITE)
    shutil.rmtree(world.state.path)
    wait_for(lambda: not [pid for pid in below if is_running(pid)])
    world.state.release()


def test_by_default_nobody_is_left_within_a_minute() -> None:
    from everstep_operator.cluster import process, s3

    slowest = max(process.LEASE_SECONDS + process.LEASE_GRACE, s3.LEASE_SECONDS + s3.LEASE_GRACE)
    assert slowest + 2 <= 60  # and two ticks of the shim
    assert s3.LEASE_SECONDS >= process.LEASE_SECONDS + process.LEASE_GRACE, "pods save to it in their last seconds"


# The state folder.


def test_one_holder_at_a_time_and_it_says_who(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path / "state"), StateFolder(tmp_path / "state")
    first.take()
    with pytest.raises(Held, match=f"process {os.getpid()}, since"):
        second.take()
    first.release()
    second.take()
    assert shim.read(str(second.lease)) == shim.identity(os.getpid())
    second.release()


def test_what_must_stay_the_same_does(tmp_path: Path) -> None:
    first = StateFolder(tmp_path)
    first.take()
    run, token, port = first.create(manifest()), first.token(), first.port()
    first.release()
    second = StateFolder(tmp_path)
    second.take()
    assert second.read() == run
    assert (second.token(), second.port()) == (token, port)
    assert len(token) > 30
    second.release()


def test_a_busy_port_is_changed_only_while_nobody_knows_it(tmp_path: Path) -> None:
    import socket

    state = StateFolder(tmp_path)
    state.take()
    port = state.port()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        assert state.port() == port
        assert state.port(may_change=True) != port
    state.release()


def test_ports_are_distinct_and_not_ephemeral() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_a_new_spec_keeps_uid_and_status(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.take()
    run = state.create(manifest())
    run = state.save_status(run, run.status.model_copy(update={"phase": Phase.RUNNING}))
    spec = run.spec.model_copy(update={"num_nodes": 3})
    changed = state.replace_spec(manifest().model_copy(update={"spec": spec}))
    assert (changed.metadata.uid, changed.status.phase) == (run.metadata.uid, Phase.RUNNING)
    assert (changed.spec.num_nodes, changed.metadata.generation) == (3, run.metadata.generation + 1)
    assert changed.metadata.resource_version != run.metadata.resource_version
    state.release()


def test_a_damaged_object_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ClusterError, match="start afresh"):
        StateFolder(tmp_path).read()


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="cannot be used"):
        StateFolder(tmp_path / "file" / "state").take()
