"""The operator's loop on an API server that says no in each of its ways: in the end everything is there, and once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from everstep_operator import handlers
from everstep_operator.cluster.kubernetes import Lease
from everstep_operator.cluster.port import Refused, RunKey, Unavailable
from everstep_operator.handlers import Operator
from everstep_operator.metrics import Metrics
from everstep_operator.plan import refusal
from everstep_operator.reconcile import POLL_SECONDS
from everstep_protocol.backoff import Backoff
from tests.emulated.api import Fault, Object, Status
from tests.operator_process.world import FORBIDDEN, World, manifest, until

KEY = RunKey("team", "first")
SOON = Backoff(initial_seconds=0.01, max_seconds=0.05)


@asynccontextmanager
async def operator(world: World, **settings: Any) -> AsyncIterator[Operator]:
    async with world.connect(**settings) as cluster, world.server() as api:
        yield Operator(cluster, Lease(api, "team", "everstep", "me"), Metrics())


@asynccontextmanager
async def at_work(operator: Operator) -> AsyncIterator[None]:
    operator.lease.leading.set()
    tasks = [asyncio.create_task(job) for job in (operator.listen(), operator.queue.run())]
    operator.queue.add(KEY)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


ANSWERS = {
    "403 of an API server that starts": FORBIDDEN,
    "403 by admission": Status(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity'),
    "404": Status(404, "NotFound", 'namespaces "team" not found'),
    "409 exists": Status(409, "AlreadyExists", "it already exists"),
    "409 conflict": Status(409, "Conflict", "the object has been modified"),
    "410": Status(410, "Expired", "too old resource version"),
    "422": Status(422, "Invalid", "spec.containers[0].image: Required value"),
    "429": Status(429, "TooManyRequests", "later", headers={"Retry-After": "0.01"}),
    "500": Status(500, "InternalError", "etcdserver: request timed out"),
    "503": Status(503, "ServiceUnavailable", "apiserver is shutting down"),
    "504": Status(504, "Timeout", "request did not complete within requested timeout"),
    "no answer": None,
    "done, and no answer": None,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_is_answered_in_the_end_each_pod_is_there_once(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, constant in ((handlers, "_AWAY"), (handlers, "_REFUSED"), (refusal, "_BACKOFF")):
        monkeypatch.setattr(module, constant, SOON)
    writes = [("POST", "secrets"), ("PATCH", "services"), ("PATCH", "networkpolicies"), ("POST", "pods")]
    if name != "404":  # a run that is not there any more is left alone
        writes.append(("PUT", "trainingruns"))
    for method, plural in writes:
        world.fail(method, plural, ANSWERS[name], times=2, after=name.startswith("done"))

    async def story() -> None:
        async with operator(world) as it, at_work(it):
            await until(lambda: len(world.api.of("pods")) == 2 and world.api.of("trainingruns")[0].get("status"))
            assert all(fault.times < 2 for fault in world.api.faults), "each was met"
            await until(lambda: not it.queue.depth())
            run: Object = world.api.of("trainingruns")[0]
            assert run["status"]["phase"] == "Pending"
            prefixes = {pod["metadata"]["name"].rpartition("-")[0] for pod in world.api.of("pods")}
            assert len(prefixes) == len(world.api.of("pods")) == 2, "one coordinator, one worker"
            it.queue.add(KEY)
            await until(lambda: "refusal" not in world.api.of("trainingruns")[0]["status"])

    asyncio.run(story())


def test_a_standby_collects_nothing_and_begins_with_what_is_there(world: World) -> None:
    gone = world.cluster.create("trainingruns", manifest("gone"))
    world.cluster.do(world.api.remove("trainingruns", gone))

    async def story() -> None:
        async with operator(world) as it:
            looked: list[RunKey] = []
            it.queue._work = lambda key: looked.append(key) or it.look(key)  # type: ignore[func-returns-value]
            tasks = [asyncio.create_task(job) for job in (it.listen(), it.lead(), it.queue.run())]
            await asyncio.sleep(0)
            it.cluster.run_changed("DELETED", gone)
            told = it.cluster._watchers
            await until(lambda: told and all(queue.empty() for queue in told))
            assert it.queue.depth() == 0
            it.queue.add(RunKey("team", "gone"))  # by a look that ended after the Lease was lost
            it.lease.leading.set()
            await until(lambda: len(world.api.of("pods")) == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert set(looked) == {KEY}

    asyncio.run(story())


def test_a_run_that_is_gone_when_its_status_is_written_is_left_alone(world: World) -> None:
    world.fail("PUT", "trainingruns", Status(404, "NotFound", "not found"))

    async def story() -> None:
        async with operator(world) as it:
            assert await it.look(KEY) is None

    asyncio.run(story())
    assert world.api.of("pods") == []


def test_who_tells_when_to_come_back_is_listened_to(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with operator(world) as it:
            assert it.after_failure(KEY, Unavailable("later", retry_after=17.0), 1) == 17.0
            assert it.after_failure(KEY, Unavailable("tomorrow", retry_after=86_400.0), 1) == 60.0, "nobody knows"
            assert "team/first: tomorrow (asked to wait for 86400 s, at most 60 are)" in caplog.text
            assert it.after_failure(KEY, Unavailable("away"), 20) <= 6.0, "soon, it may be back"
            assert 48.0 <= it.after_failure(KEY, Refused("no"), 20) <= 72.0

    asyncio.run(story())


def test_polls_are_spread_and_slower_for_many_and_what_is_due_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "POLLED_OFTEN", 2)
    for number in range(20):
        world.cluster.create("trainingruns", manifest(f"run-{number}"))
    world.cluster.create("trainingruns", manifest("due", activeDeadlineSeconds=7))

    async def story() -> None:
        async with operator(world) as it:
            pauses = [await it.look(RunKey("team", f"run-{number}")) for number in range(20)]
            slow = [pause for pause in pauses[2:] if pause is not None]
            assert len(slow) == len(set(slow)) == 18
            assert POLL_SECONDS * 0.8 <= slow[0] < slow[-1] <= POLL_SECONDS * 10 * 1.2
            assert slow[-1] > POLL_SECONDS * 10 * 0.8
            due = await it.look(RunKey("team", "due"))
            assert due is not None
            assert due <= 7.0

    asyncio.run(story())


def test_an_operator_that_hears_nothing_any_more_is_not_alive(world: World) -> None:
    """A watch that is deaf in a way that nobody foresaw: a new process is the way out."""

    async def story() -> None:
        async with operator(world) as it:
            assert it.healthz() == (True, "ok")
            it.lease._unanswered -= handlers.DEAF_SECONDS + 1  # the Lease has been renewed for so long
            (pods, _) = it.cluster.informers()
            pods._heard -= handlers.DEAF_SECONDS
            assert it.healthz() == (False, "a watch has heard nothing for 300 s, although the API server answers")
            pods._heard += handlers.DEAF_SECONDS
            (path,) = it.answers._heard
            it.answers._heard[path] -= handlers.DEAF_SECONDS
            assert it.healthz()[0], "kopf's watch is heard only when it begins"
            it.answers._heard[path] -= handlers.RUNS_WATCH_SECONDS
            assert not it.healthz()[0]

    asyncio.run(story())


def test_an_operator_lives_through_an_outage_of_the_api_server_however_long(world: World) -> None:
    """Another process would hear as little, and one that was killed all the time comes back late."""

    async def story() -> None:
        async with operator(world) as it:
            (pods, _) = it.cluster.informers()
            pods._heard -= 100 * handlers.DEAF_SECONDS
            it.lease._unanswered -= 100 * handlers.DEAF_SECONDS
            assert not it.healthz()[0]
            world.fail("GET", "leases", None, times=1_000)
            renewing = asyncio.create_task(it.lease.run())
            await until(lambda: it.healthz()[0])
            it.lease._unanswered -= handlers.DEAF_SECONDS  # it is back, and this watch still hears nothing
            assert not it.healthz()[0]
            renewing.cancel()

    asyncio.run(story())


def test_an_operator_that_is_refused_a_namespace_is_alive(world: World) -> None:
    """Another process would be refused as well."""

    async def story() -> None:
        async with operator(world, namespaces=("gone", "team")) as it:
            refused = Status(403, "Forbidden", "is forbidden: the role is gone")
            world.api.faults.append(Fault("GET", "pods", refused, times=1_000, namespace="gone"))
            world.cluster.do(world.api.forget_history())
            (gone, _) = it.cluster.informers()
            await until(lambda: gone.refused)
            it.lease._unanswered -= 2 * handlers.DEAF_SECONDS
            gone._heard -= handlers.DEAF_SECONDS
            await until(lambda: it.healthz()[0])  # it is asked again, and says no again

    asyncio.run(story())
