"""What every adapter of cluster/port.py has to do, as a base class of cases.

An adapter's test module derives a class from `Conformance` and gives it a fixture `world`; pytest then runs all of it.
Pods run small shell scripts, so that the same cases run on a real cluster.
"""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

import pytest

from everstep_operator.api.trainingrun import Phase, TrainingRun
from everstep_operator.cluster.port import AlreadyExists, Cluster, Conflict, Event, NotFound, RunKey
from everstep_operator.plan import model
from everstep_operator.plan.model import Pod, PodSpec
from everstep_protocol import env, labels
from everstep_protocol.codec import dumps
from everstep_protocol.messages import Intent, Report, StopCause
from everstep_protocol.reasons import Reason

#: Ready to be told to stop: `sh` waits in a builtin, so its trap runs at once.
POLITE = "trap 'exit 85' TERM; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


class World(Protocol):
    """One cluster with one run in it."""

    run: TrainingRun
    seconds: float  # no case takes that long

    def connect(self) -> AbstractAsyncContextManager[Cluster]:
        """An adapter, as a newly started operator has it; a second one looks at the same cluster by itself."""
        ...

    def log(self, pod: Pod) -> str:
        """What the pod has printed so far."""
        ...

    def another_uid(self) -> TrainingRun:
        """A run of the same name that is another object: deleted and created again."""
        ...


Story = Callable[[Any, World, Cluster], Awaitable[None]]


def story(test: Story) -> Callable[[Any, World], None]:
    """An async case that gets an adapter."""

    @functools.wraps(test)
    def run(self: Any, world: World) -> None:
        async def told() -> None:
            async with asyncio.timeout(world.seconds), world.connect() as cluster:
                await test(self, world, cluster)

        asyncio.run(told())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would take `cluster` for a fixture
    return run


def pod(world: World, script: str, grace_seconds: float = 20.0) -> PodSpec:
    return PodSpec(
        name="first-0-1",
        role=labels.WORKER,
        node=0,
        attempt=1,
        command=("sh", "-c", script),
        env={"GREETING": "hello", env.POD: "first-0-1"},
        labels=_labels(world, labels.WORKER) | {labels.NODE: "0"},
        grace_seconds=grace_seconds,
    )


def coordinator(world: World, intent: Intent) -> PodSpec:
    return PodSpec(
        name="first-coordinator-1",
        role=labels.COORDINATOR,
        node=None,
        attempt=1,
        command=("everstep", "coordinator", "--intent", dumps(intent).decode()),
        labels=_labels(world, labels.COORDINATOR),
    )


def _labels(world: World, role: str) -> dict[str, str]:
    metadata = world.run.metadata
    return {labels.RUN: metadata.name, labels.RUN_UID: metadata.uid, labels.ROLE: role, labels.ATTEMPT: "1"}


async def until(question: Callable[[], Awaitable[Any]]) -> Any:
    """The first true answer."""
    while not (answer := await question()):  # noqa: ASYNC110 - the world outside sends no events
        await asyncio.sleep(0.02)
    return answer


async def ready(world: World, created: Pod) -> None:
    async def greeted() -> bool:
        return "ready" in world.log(created)

    await until(greeted)


async def finished(cluster: Cluster, run: TrainingRun, name: str = "first-0-1") -> Pod:
    async def look() -> Pod | None:
        return next((p for p in await cluster.list_pods(run) if p.name == name and p.finished), None)

    return await until(look)  # type: ignore[no-any-return]


async def gone(cluster: Cluster, run: TrainingRun, name: str = "first-0-1") -> None:
    async def look() -> bool:
        return all(p.name != name for p in await cluster.list_pods(run))

    await until(look)


class Conformance:
    # The object.

    @story
    async def test_the_run_is_found_by_its_key_and_no_other(self, world: World, cluster: Cluster) -> None:
        metadata = world.run.metadata
        found = await cluster.get_run(RunKey(metadata.namespace, metadata.name))
        assert (found.metadata.uid, found.spec) == (metadata.uid, world.run.spec)
        assert found.metadata.uid
        assert found.metadata.resource_version
        with pytest.raises(NotFound):
            await cluster.get_run(RunKey(metadata.namespace, "another"))

    @story
    async def test_status_is_kept_and_changes_the_version(self, world: World, cluster: Cluster) -> None:
        status = world.run.status.model_copy(update={"phase": Phase.PENDING, "message": "waits"})
        saved = await cluster.save_status(world.run, status)
        async with world.connect() as other:
            read = await other.get_run(RunKey(saved.metadata.namespace, saved.metadata.name))
        assert read == saved
        assert read.status.message == "waits"
        assert read.metadata.resource_version != world.run.metadata.resource_version
        assert read.metadata.uid == world.run.metadata.uid

    @story
    async def test_a_stale_version_is_a_conflict_and_changes_nothing(self, world: World, cluster: Cluster) -> None:
        async with world.connect() as other:
            newer = await other.save_status(world.run, world.run.status.model_copy(update={"message": "newer"}))
            with pytest.raises(Conflict):
                await cluster.save_status(world.run, world.run.status.model_copy(update={"message": "older"}))
            key = RunKey(newer.metadata.namespace, newer.metadata.name)
            assert (await other.get_run(key)).status.message == "newer"
        assert (await cluster.save_status(newer, newer.status.model_copy(update={"message": "next"}))).status.message

    @story
    async def test_a_run_of_another_uid_cannot_write_the_status(self, world: World, cluster: Cluster) -> None:
        with pytest.raises((NotFound, Conflict)):
            await cluster.save_status(world.another_uid(), world.run.status.model_copy(update={"message": "ghost"}))

    @story
    async def test_the_run_itself_is_deleted_by_its_uid(self, world: World, cluster: Cluster) -> None:
        key = _key(world)
        with pytest.raises((NotFound, Conflict)):
            await cluster.delete_run(world.another_uid())
        await cluster.post_events(world.run, (model.Event("Normal", "Expired", "its time to live is over"),))
        await cluster.delete_run(await cluster.get_run(key))

        async def is_gone() -> bool:
            try:
                await cluster.get_run(key)
            except NotFound:
                return True
            return False

        await until(is_gone)
        with pytest.raises(NotFound):
            await cluster.delete_run(world.run)
        await cluster.post_events(world.run, (model.Event("Normal", "Expired", "nobody is there to be told"),))

    # Pods.

    @story
    async def test_a_pod_runs_with_its_environment_and_succeeds(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, "echo $GREETING from $EVERSTEP_POD"))
        assert (created.name, created.node, created.attempt, created.role) == ("first-0-1", 0, 1, labels.WORKER)
        assert created.uid
        done = await finished(cluster, world.run)
        assert created.created == done.created, "pods that end early are known by it"
        assert done.created is not None
        assert (done.phase, done.exit_code, done.failure, done.disrupted) == ("Succeeded", 0, None, False)
        assert (done.uid, done.run_uid) == (created.uid, world.run.metadata.uid)
        assert world.log(done) == "hello from first-0-1\n"

    @story
    async def test_exit_status_and_last_words_are_observed(self, world: World, cluster: Cluster) -> None:
        words = '{"reason": "OutOfMemory", "message": "no room", "rank": 4}'
        await cluster.create_pod(world.run, pod(world, f"echo '{words}' > $EVERSTEP_TERMINATION_FILE; exit 7"))
        dead = await finished(cluster, world.run)
        assert (dead.phase, dead.exit_code) == ("Failed", 7)
        assert dead.failure is not None
        assert (dead.failure.reason, dead.failure.message, dead.failure.rank) == (Reason.OUT_OF_MEMORY, "no room", 4)

    @story
    async def test_last_words_that_nobody_understands_are_none(self, world: World, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, pod(world, "echo '{' > $EVERSTEP_TERMINATION_FILE; exit 137"))
        dead = await finished(cluster, world.run)
        assert (dead.phase, dead.exit_code, dead.failure) == ("Failed", 137, None)

    @story
    async def test_a_command_that_does_not_exist_fails_with_a_reason(self, world: World, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, replace(pod(world, ""), command=("no-such-command",)))
        dead = await finished(cluster, world.run)
        assert dead.phase == "Failed"
        assert dead.failure is not None
        assert dead.failure.reason is Reason.COMMAND_NOT_FOUND
        assert "no-such-command" in dead.failure.message

    @story
    async def test_a_list_holds_only_pods_of_the_runs_uid(self, world: World, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, pod(world, POLITE))
        assert [p.name for p in await cluster.list_pods(world.run)] == ["first-0-1"]
        assert await cluster.list_pods(world.another_uid()) == []

    @story
    async def test_a_name_is_given_once(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, POLITE))
        with pytest.raises(AlreadyExists):
            await cluster.create_pod(world.run, pod(world, "exit 1"))
        (still,) = await cluster.list_pods(world.run)
        assert (still.uid, still.finished) == (created.uid, False)

    @story
    async def test_a_finished_pod_keeps_its_name(self, world: World, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, pod(world, "exit 3"))
        dead = await finished(cluster, world.run)
        with pytest.raises(AlreadyExists):
            await cluster.create_pod(world.run, pod(world, "exit 0"))
        await cluster.delete_pod(world.run, dead.name, dead.uid, 5)
        await gone(cluster, world.run)
        again = await cluster.create_pod(world.run, pod(world, "exit 0"))
        assert again.uid != dead.uid
        assert (await finished(cluster, world.run)).phase == "Succeeded"

    @story
    async def test_a_terminating_pod_keeps_its_name(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, STUBBORN))
        await ready(world, created)
        await cluster.delete_pod(world.run, created.name, created.uid, 20)
        (going,) = await cluster.list_pods(world.run)
        assert (going.uid, going.terminating, going.finished) == (created.uid, True, False)
        with pytest.raises(AlreadyExists):
            await cluster.create_pod(world.run, pod(world, "exit 0"))
        await cluster.delete_pod(world.run, created.name, created.uid, 0)
        await gone(cluster, world.run)
        assert (await cluster.create_pod(world.run, pod(world, "exit 0"))).uid != created.uid

    @story
    async def test_a_delete_has_a_uid_for_its_precondition(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, POLITE))
        await ready(world, created)
        with pytest.raises(Conflict):
            await cluster.delete_pod(world.run, created.name, "another-uid", 0)
        await asyncio.sleep(0.2)
        (still,) = await cluster.list_pods(world.run)
        assert (still.uid, still.terminating, still.finished) == (created.uid, False, False)

    @story
    async def test_what_is_not_there_cannot_be_deleted(self, world: World, cluster: Cluster) -> None:
        with pytest.raises(NotFound):
            await cluster.delete_pod(world.run, "first-9-1", "some-uid", 0)

    @story
    async def test_a_delete_asks_politely_first(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(
            world.run, pod(world, "trap 'echo bye; exit 85' TERM; echo ready; sleep 60 & wait")
        )
        await ready(world, created)
        await cluster.delete_pod(world.run, created.name, created.uid, 20)
        await gone(cluster, world.run)
        assert world.log(created) == "ready\nbye\n"

    @story
    async def test_after_the_grace_it_is_killed(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, STUBBORN))
        await ready(world, created)
        await cluster.delete_pod(world.run, created.name, created.uid, 1)
        await gone(cluster, world.run)  # it never leaves by itself

    @story
    async def test_a_second_delete_can_only_shorten_the_grace(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, STUBBORN))
        await ready(world, created)
        await cluster.delete_pod(world.run, created.name, created.uid, 1)
        await cluster.delete_pod(world.run, created.name, created.uid, 3600)
        await gone(cluster, world.run)

    @story
    async def test_a_deleted_pod_is_not_disrupted(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, STUBBORN))
        await ready(world, created)
        await cluster.delete_pod(world.run, created.name, created.uid, 20)
        (going,) = await cluster.list_pods(world.run)
        assert (going.terminating, going.disrupted) == (True, False)
        await cluster.delete_pod(world.run, created.name, created.uid, 0)

    # Another operator, and eyes that see late.

    @story
    async def test_a_new_operator_sees_the_same_pods(self, world: World, cluster: Cluster) -> None:
        created = await cluster.create_pod(world.run, pod(world, POLITE))
        await ready(world, created)
        async with world.connect() as other:
            assert [(p.name, p.uid, p.phase) for p in await other.list_pods(world.run)] == [
                (created.name, created.uid, "Running")
            ]
            with pytest.raises(AlreadyExists):
                await other.create_pod(world.run, pod(world, POLITE))
            await other.delete_pod(world.run, created.name, created.uid, 20)
            await gone(cluster, world.run)

    @story
    async def test_the_watch_tells_of_the_end_of_a_pod(self, world: World, cluster: Cluster) -> None:
        await cluster.create_pod(world.run, pod(world, "exit 0"))
        async with _Watch(cluster) as watch:
            while not any(p.finished for p in await cluster.list_pods(world.run)):
                assert (await watch.next()).key == _key(world)

    @story
    async def test_a_watch_that_saw_nothing_resyncs(self, world: World, cluster: Cluster) -> None:
        """Another operator does it all: whatever this one's watch missed, a list is fresh and a resync comes."""
        async with world.connect() as other, _Watch(cluster) as watch:
            await other.create_pod(world.run, pod(world, "exit 0"))
            await finished(other, world.run)
            assert [p.phase for p in await cluster.list_pods(world.run)] == ["Succeeded"]
            event = await watch.next()
            while event.what != "resync":
                event = await watch.next()
            assert event.key == _key(world)

    # The coordinator.

    @story
    async def test_without_a_coordinator_there_is_no_report(self, world: World, cluster: Cluster) -> None:
        assert await cluster.get_report(world.run) is None
        assert await cluster.send_intent(world.run, Intent(nodes=1, min_nodes=1, max_restarts=0)) is None

    @story
    async def test_the_coordinator_reports_and_takes_intents(self, world: World, cluster: Cluster) -> None:
        intent = Intent(nodes=2, min_nodes=2, max_restarts=3, first_generation=5)
        await cluster.create_pod(world.run, coordinator(world, intent))

        async def report() -> Any:
            answer = await cluster.get_report(world.run)
            return answer if isinstance(answer, Report) else None  # it runs and does not listen yet

        answered = await until(report)
        assert (answered.intent, answered.restarts) == (intent, 0)
        stop = replace(intent, stop=StopCause.SUSPEND)
        after = await cluster.send_intent(world.run, stop)
        assert after is not None
        assert after.intent == stop

        (going,) = await cluster.list_pods(world.run)
        await cluster.delete_pod(world.run, going.name, going.uid, 0)
        await gone(cluster, world.run, going.name)
        assert await cluster.get_report(world.run) is None


def _key(world: World) -> RunKey:
    return RunKey(world.run.metadata.namespace, world.run.metadata.name)


class _Watch:
    """A watch that is closed at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._events: AsyncIterator[Event] = cluster.watch()

    async def __aenter__(self) -> "_Watch":
        return self

    async def next(self) -> Event:
        return await anext(self._events)

    async def __aexit__(self, *exception: object) -> None:
        if sys.exc_info()[0] is not GeneratorExit:
            await self._events.aclose()  # type: ignore[attr-defined]
