"""Each way in which an API server can say no, and what the adapter makes of it."""

import asyncio
import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everstep_operator.cluster.kubernetes.adapter import SURE_SECONDS
from everstep_operator.cluster.kubernetes.api import FORBIDDEN_SECONDS, Gone, MaybeRefused
from everstep_operator.cluster.kubernetes.pods import Seen
from everstep_operator.cluster.kubernetes.view import PodView
from everstep_operator.cluster.port import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Invalid,
    NotFound,
    Refused,
    RunKey,
    Unavailable,
)
from everstep_operator.cluster.render.metadata import owner
from everstep_operator.plan import make_plan, observe
from everstep_operator.plan.model import CreatePod
from everstep_operator.reconcile import reconcile
from everstep_protocol import labels
from everstep_protocol.messages import Report, RunState
from everstep_protocol.reasons import Failure, Reason
from everstep_protocol.version import PROTOCOL_VERSION
from tests.emulated import Fault
from tests.emulated.api import Status
from tests.operator_process.world import FORBIDDEN, QUOTA, World, manifest, until

PODS = "/api/v1/namespaces/team/pods"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Status(400, "BadRequest", "Pod in version v1 cannot be handled as a Pod: json: cannot unmarshal"), Refused),
        (Status(401, "Unauthorized", "Unauthorized"), Unavailable),
        (QUOTA, Refused),
        (Status(403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'), Refused),
        (FORBIDDEN, MaybeRefused),
        (Status(404, "NotFound", 'namespaces "team" not found'), NotFound),
        (Status(409, "AlreadyExists", 'pods "x" already exists'), AlreadyExists),
        (Status(409, "Conflict", "the object has been modified"), Conflict),
        (Status(410, "Expired", "too old resource version"), Gone),
        (Status(413, "RequestEntityTooLarge", "limit is 3145728"), Refused),
        (Status(422, "Invalid", 'Pod "x" is invalid: spec.containers[0].image: Required value'), Refused),
        (Status(429, "TooManyRequests", "please try again later"), Unavailable),
        (Status(500, "InternalError", "etcdserver: request timed out"), Unavailable),
        (Status(500, "InternalError", 'Internal error occurred: failed calling webhook "x.team.test"'), Refused),
        (Status(503, "ServiceUnavailable", "apiserver is shutting down"), Unavailable),
        (Status(504, "Timeout", "request did not complete within requested timeout"), Unavailable),
    ],
    ids=lambda value: f"{value.code}-{value.reason}" if isinstance(value, Status) else value.__name__,
)
def test_an_answer_is_one_of_the_ports_errors(world: World, answer: Status, error: type[ClusterError]) -> None:
    world.fail("POST", "pods", answer)

    async def story() -> None:
        async with world.server() as api:
            with pytest.raises(error) as caught:
                await api.request("POST", PODS, body={"metadata": {"name": "x"}})
            assert type(caught.value) is error
            assert str(answer) in str(caught.value), "in the cluster's own words"

    asyncio.run(story())


def test_retry_after_is_heard(world: World) -> None:
    world.fail("GET", "pods", Status(429, "TooManyRequests", "later", headers={"Retry-After": "17"}))

    async def story() -> None:
        async with world.server() as api:
            with pytest.raises(Unavailable) as caught:
                await api.request("GET", PODS)
            assert caught.value.retry_after == 17.0

    asyncio.run(story())


def test_no_answer_is_unavailable(world: World) -> None:
    world.fail("GET", "pods", None, times=100)

    async def story() -> None:
        async with world.server() as api:
            with pytest.raises(Unavailable, match="does not answer"):
                await api.request("GET", PODS)
            world.api.faults.clear()
            assert (await api.request("GET", PODS))["items"] == [], "and the next request is none the worse"

    asyncio.run(story())


def test_an_api_server_that_is_not_there_is_unavailable(world: World) -> None:
    async def story() -> None:
        async with world.server() as api:
            api._configuration.host = "http://127.0.0.1:1"
            with pytest.raises(Unavailable, match="does not answer"):
                await api.request("GET", PODS)

    asyncio.run(story())


def test_an_api_server_that_hangs_is_unavailable(world: World) -> None:
    async def hang() -> None:
        lines: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: lines.append(writer), "127.0.0.1", 0)
        async with world.server(request_seconds=0.05) as api:
            api._configuration.host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(Unavailable, match="TimeoutError"):
                await api.request("GET", PODS)
        for line in lines:
            line.close()
            await line.wait_closed()
        server.close()

    asyncio.run(hang())


def test_a_missing_right_is_meant_only_when_it_lasts(world: World) -> None:
    """An API server that has just started says it, too, before it has read its roles."""
    world.fail("POST", "pods", FORBIDDEN, times=3)
    now = 0.0

    async def story() -> None:
        nonlocal now
        async with world.server(clock=lambda: now) as api:
            for seconds, error in (
                (0, Unavailable),
                (FORBIDDEN_SECONDS - 1, Unavailable),
                (FORBIDDEN_SECONDS, Refused),
            ):
                now = seconds
                with pytest.raises(error, match="cannot create resource"):
                    await api.request("POST", PODS, body={"metadata": {"name": "x"}})
            await api.request("POST", PODS, body={"metadata": {"name": "x"}})
            now += 1_000
            world.fail("POST", "pods", FORBIDDEN)
            with pytest.raises(Unavailable):  # a new spell of it
                await api.request("POST", PODS, body={"metadata": {"name": "y"}})

    asyncio.run(story())


def test_a_right_that_is_missing_in_one_namespace_is_told_although_another_has_it(world: World) -> None:
    now = 0.0

    async def story() -> None:
        nonlocal now
        async with world.server(clock=lambda: now) as api:
            for seconds, error in ((0, Unavailable), (FORBIDDEN_SECONDS, Refused)):
                now = seconds
                world.fail("POST", "pods", FORBIDDEN)
                with pytest.raises(error, match="cannot create resource"):
                    await api.request("POST", "/api/v1/namespaces/other/pods", body={"metadata": {"name": "x"}})
                await api.request("POST", PODS, body={"metadata": {"name": f"x{seconds:.0f}"}})

    asyncio.run(story())


def test_a_pod_of_somebody_else_with_our_labels_is_neither_seen_nor_deleted(world: World) -> None:
    """`kubectl debug POD --copy-to=z --keep-labels` makes one."""

    async def story() -> None:
        async with world.connect() as cluster:
            await cluster.create_pod(world.run, world.spec())
            copied = _pod(world, "zz")
            del copied["metadata"]["ownerReferences"]  # type: ignore[attr-defined]
            world.cluster.create("pods", copied)
            later = world.cluster.create("pods", _pod(world, "zzz"))["metadata"]["uid"]  # the watch has told both

            async def names() -> list[str]:
                return [pod.name for pod in await cluster.list_pods(world.run)]

            await until(lambda: later in {seen.pod.uid for seen in cluster._pods[""].of(world.run.metadata.uid)})
            assert await names() == ["first-0-1", "zzz"]
            cluster._pods[""].doubt(world.run.metadata.uid)
            assert await names() == ["first-0-1", "zzz"], "nor when the source is asked"

    asyncio.run(story())


def test_a_name_that_a_pod_of_somebody_else_has_is_told(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            key = RunKey("team", "first")
            plan = make_plan(world.run, observe(world.run, [], None), datetime.now(UTC))
            name = next(a.spec.name for a in plan.actions if isinstance(a, CreatePod) and a.spec.node == 0)
            foreign = _pod(world, name)
            del foreign["metadata"]["ownerReferences"]  # type: ignore[attr-defined]
            world.cluster.create("pods", foreign)
            await reconcile(cluster, key, datetime.now(UTC))
            status = (await cluster.get_run(key)).status
            assert status.refusal is not None
            assert f"the name {name} belongs to a pod of somebody else" in status.refusal.message

    asyncio.run(story())


def test_a_node_that_the_watch_has_not_told_of_yet_is_not_lost(world: World) -> None:
    """An autoscaler has added it, and the watch of Nodes is late."""

    async def story() -> None:
        async with world.connect() as cluster:
            world.api.deaf = True
            world.cluster.create("nodes", _node("new"))
            world.cluster.create("pods", _pod(world, machine="new"))
            cluster._pods[""].doubt(world.run.metadata.uid)
            lists = world.api.requests_made.count(("GET", "nodes"))
            for answers in await asyncio.gather(*(cluster.list_pods(world.run) for _ in range(8))):
                assert [(pod.machine, pod.machine_lost_since) for pod in answers] == [("new", None)]
            assert world.api.requests_made.count(("GET", "nodes")) == lists + 1, "asked once by all who wait for it"

    asyncio.run(story())


def test_a_node_that_does_not_exist_is_lost_from_when_that_was_known(world: World) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    async def story() -> None:
        nonlocal now
        async with world.connect(clock=lambda: now) as cluster:
            world.cluster.create("pods", _pod(world, machine="gone"))
            cluster._pods[""].doubt(world.run.metadata.uid)
            first, now = now, now + timedelta(seconds=5)
            (pod,) = await until(lambda: cluster.list_pods(world.run))
            assert pod.machine_lost_since == first + timedelta(seconds=5), "not from the pod's creation on"
            lists = world.api.requests_made.count(("GET", "nodes"))
            now += timedelta(seconds=5)
            (pod,) = await cluster.list_pods(world.run)
            assert pod.machine_lost_since == first + timedelta(seconds=5)
            assert world.api.requests_made.count(("GET", "nodes")) == lists, "it is asked for once"
            world.cluster.create("nodes", _node("gone"))

            async def back() -> bool:
                return (await cluster.list_pods(world.run))[0].machine_lost_since is None

            await until(back)

    asyncio.run(story())


def test_who_takes_over_reads_the_nodes_as_they_are_now(world: World) -> None:
    node = world.cluster.create("nodes", _node("n1"))
    world.cluster.create("pods", _pod(world, machine="n1"))

    async def story() -> None:
        async with world.connect() as cluster:
            world.api.deaf = True  # it was stopped, and its watch is dead
            node["status"]["conditions"][0]["status"] = "Unknown"
            world.cluster.do(world.api.put("nodes", node))
            await cluster.take_over()
            assert all(pod.machine_lost_since is not None for pod in await cluster.list_pods(world.run))

    asyncio.run(story())


def test_a_doubt_goes_with_its_run(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            (item,) = world.api.of("trainingruns")
            view = cluster._pods[""]
            view.doubt(world.run.metadata.uid)
            cluster.run_changed("MODIFIED", item)
            assert not view.is_sure(world.run.metadata.uid)
            cluster.run_changed("DELETED", item)
            assert view.is_sure(world.run.metadata.uid)

    asyncio.run(story())


def test_who_takes_over_does_not_wait_for_a_namespace_that_was_deleted(world: World) -> None:
    """Its roles are gone with it; an API server that starts would know none at all."""

    async def story() -> None:
        async with world.connect(namespaces=("gone", "team")) as cluster:
            for plural in ("pods", "trainingruns"):
                world.api.faults.append(Fault("GET", plural, FORBIDDEN, times=1_000, namespace="gone"))
            assert await cluster.take_over() == [RunKey("team", "first")]
            world.fail("GET", "pods", FORBIDDEN, times=1_000)
            with pytest.raises(Unavailable, match="cannot create resource"):
                await cluster.take_over()

    asyncio.run(story())


def test_a_create_that_nobody_answered_is_looked_up(world: World) -> None:
    """It has happened, or not: the source is asked before anything else is done."""
    world.fail("POST", "pods", None, after=True)

    async def story() -> None:
        async with world.connect() as cluster:
            world.api.deaf = True  # the watch would tell, too late
            with pytest.raises(Unavailable):
                await cluster.create_pod(world.run, world.spec())
            assert [pod.name for pod in await cluster.list_pods(world.run)] == ["first-0-1"]

    asyncio.run(story())


def test_a_name_that_somebody_else_has_is_looked_up(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster, world.connect() as other:
            world.api.deaf = True
            await other.create_pod(world.run, world.spec())
            assert await cluster.list_pods(world.run) == [], "its watch is deaf"
            with pytest.raises(AlreadyExists):
                await cluster.create_pod(world.run, world.spec())
            assert [pod.name for pod in await cluster.list_pods(world.run)] == ["first-0-1"]

    asyncio.run(story())


def test_pods_come_from_the_view_while_it_hears_and_cost_no_request(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            await cluster.create_pod(world.run, world.spec())
            before = len(world.api.requests_made)
            for _ in range(10):
                assert [pod.name for pod in await cluster.list_pods(world.run)] == ["first-0-1"]
            assert len(world.api.requests_made) == before

    asyncio.run(story())


def test_a_watch_whose_past_is_gone_lists_again(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            world.api.deaf = True
            pod = world.cluster.create("pods", _pod(world))
            world.cluster.do(world.api.forget_history())
            world.api.deaf = False

            async def told() -> bool:
                return [seen.uid for seen in await cluster.list_pods(world.run)] == [pod["metadata"]["uid"]]

            await until(told)
            await until(lambda: all(informer.watching for informer in cluster.informers()))
            later = world.cluster.create("pods", _pod(world, "first-1-1"))
            view = cluster._pods[""]
            await until(lambda: later["metadata"]["uid"] in {seen.pod.uid for seen in view.of(world.run.metadata.uid)})

    asyncio.run(story())


def test_a_watch_that_breaks_goes_on_from_where_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lists_heard: list[int] = []

    def listed(view: PodView, items: list[Seen], version: int, heard: Any = PodView.listed) -> None:
        lists_heard.append(version)
        heard(view, items, version)

    monkeypatch.setattr(PodView, "listed", listed)

    async def story() -> None:
        async with world.connect() as cluster:
            lists = world.api.requests_made.count(("GET", "pods"))
            world.fail("GET", "pods", None, times=2)  # the next watch: aiohttp tries a kept connection twice
            world.cluster.do(_end_watches(world))
            pod = world.cluster.create("pods", _pod(world))
            view = cluster._pods[""]
            await until(lambda: pod["metadata"]["uid"] in {seen.pod.uid for seen in view.of(world.run.metadata.uid)})
            asked = [method for method, path in world.api.requests_made[lists:] if (method, path) == ("GET", "pods")]
            assert len(asked) >= 2, "it broke and was opened again"
            assert len(lists_heard) == 1, "and nothing was listed but once, at the start"

    asyncio.run(story())


def test_a_mistake_in_reading_an_object_does_not_end_the_watch_in_silence(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            broken = _pod(world, "broken")
            broken["metadata"]["creationTimestamp"] = "yesterday"  # type: ignore[index]
            broken = world.cluster.create("pods", broken)
            await until(lambda: "a mistake of the operator itself" in caplog.text)
            world.cluster.do(world.api.remove("pods", broken))
            pod = world.cluster.create("pods", _pod(world))
            view = cluster._pods[""]
            await until(lambda: pod["metadata"]["uid"] in {seen.pod.uid for seen in view.of(world.run.metadata.uid)})

    asyncio.run(story())


def test_a_run_that_cannot_be_understood_is_told_so_once_also_when_its_watch_is_late(world: World) -> None:
    odd = world.cluster.create("trainingruns", manifest("odd", numNodes=0))

    async def story() -> None:
        async with world.connect() as cluster:
            cluster.run_changed("ADDED", odd)
            for _ in range(2):
                with pytest.raises(Invalid) as caught:
                    await cluster.get_run(RunKey("team", "odd"))
                await cluster.report_invalid(RunKey("team", "odd"), caught.value)
                cluster.run_changed("ADDED", early)  # an older word
            assert world.api.writes() == [("PATCH", "trainingruns/odd/status")]

    early = copy.deepcopy(odd)
    asyncio.run(story())


def test_a_run_whose_end_nobody_told_is_forgotten(world: World) -> None:
    async def story() -> None:
        async with world.connect(resync_seconds=0.01) as cluster:
            for node in (0, 1):  # from the first pod on it is known
                await cluster.create_pod(world.run, world.spec(node))
            assert cluster._applied.keys() == {world.run.metadata.uid}
            cluster._complaints._heard[world.run.metadata.uid] = {}
            cluster._coordinators._logged[world.run.metadata.uid] = "no route to host"
            for pod in world.api.of("pods"):
                world.cluster.do(world.api.remove("pods", pod))
            await until(lambda: not cluster._applied)
            assert not cluster._complaints._heard
            assert not cluster._coordinators._logged

    asyncio.run(story())


def test_a_list_of_many_pages_is_whole_also_when_a_page_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep_operator.cluster.kubernetes.informer.PAGE", 3)
    names = [f"first-{node}-1" for node in range(10)]
    for name in names:
        world.cluster.create("pods", _pod(world, name))

    async def story() -> None:
        async with world.connect() as cluster:
            assert [pod.name for pod in await cluster.list_pods(world.run)] == names
            cluster._pods[""].doubt(world.run.metadata.uid)
            world.fail("GET", "pods", Status(410, "Expired", "The provided continue parameter is too old"))
            assert [pod.name for pod in await cluster.list_pods(world.run)] == names

    asyncio.run(story())


def test_children_are_applied_before_the_first_pod_and_again_only_when_they_change(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            await cluster.create_pod(world.run, world.spec(0))
            first = world.api.writes()
            assert first[-1] == ("POST", "pods")
            assert [path.split("/")[0] for _, path in first[:-1]] == [
                "secrets",
                "services",
                "services",
                "networkpolicies",
                "networkpolicies",
            ]
            await cluster.create_pod(world.run, world.spec(1))
            assert world.api.writes()[len(first) :] == [("POST", "pods")]

    asyncio.run(story())


def test_children_that_somebody_deleted_are_back_with_the_next_pod(world: World) -> None:
    kinds = ("secrets", "services", "networkpolicies")
    now = datetime(2026, 1, 1, tzinfo=UTC)

    async def story() -> None:
        nonlocal now
        async with world.connect(clock=lambda: now) as cluster:
            await cluster.create_pod(world.run, world.spec(0))
            before = [item["metadata"]["name"] for kind in kinds for item in world.api.of(kind)]
            for kind in kinds:
                for item in world.api.of(kind):
                    world.cluster.do(world.api.remove(kind, item))
            now += timedelta(seconds=SURE_SECONDS)
            await cluster.create_pod(world.run, world.spec(1))
            assert [item["metadata"]["name"] for kind in kinds for item in world.api.of(kind)] == before

    asyncio.run(story())


def test_a_coordinators_service_that_was_deleted_is_back_once_its_launchers_are_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launchers that speak to it anew do not find it. The coordinator loses them, and says so to the operator."""
    key = RunKey("team", "first")

    def coordinators() -> list[str]:
        names = [item["metadata"]["name"] for item in world.api.of("services")]
        return [name for name in names if name.endswith("-coordinator")]

    async def story() -> None:
        now = datetime.now(UTC)
        said = Report(PROTOCOL_VERSION, RunState.RUNNING, 1, world_size=1, restarts=0)
        async with world.connect(clock=lambda: now) as cluster:

            async def look() -> list[dict[str, Any]]:
                await reconcile(cluster, key, now)
                return [pod for pod in world.api.of("pods") if pod["metadata"]["labels"][labels.ROLE] == labels.WORKER]

            async def report(run: object) -> Report:
                return said

            (worker,) = await look()
            service = coordinators()
            monkeypatch.setattr(cluster, "get_report", report)
            for pod in world.api.of("pods"):
                statuses = [{"name": c["name"], "state": {"running": {}}} for c in pod["spec"]["containers"]]
                world.cluster.do(world.api.put("pods", pod | {"status": {"containerStatuses": statuses}}))
            await until(lambda: all(seen.pod.phase == "Running" for seen in cluster._pods[""]))
            await look()
            for item in world.api.of("services"):
                world.cluster.do(world.api.remove("services", item))

            now += timedelta(seconds=SURE_SECONDS)
            lost = Failure(Reason.NODE_LOST, "node 0 has not spoken for 10 s", node=0, generation=1)
            said = replace(said, state=RunState.RESTARTING, failures=(lost,))
            (worker,) = await look()
            assert "deletionTimestamp" in worker["metadata"]
            world.cluster.do(world.api.remove("pods", worker))
            await until(lambda: worker["metadata"]["uid"] not in {seen.pod.uid for seen in cluster._pods[""]})
            now += timedelta(seconds=SURE_SECONDS)
            (again,) = await look()
            assert again["metadata"]["uid"] != worker["metadata"]["uid"]
            assert coordinators() == service

    asyncio.run(story())


def test_nothing_is_written_while_another_operator_leads(world: World) -> None:
    def never() -> None:
        raise Unavailable("another one leads")

    async def story() -> None:
        async with world.connect(may_write=never) as cluster:
            status = world.run.status.model_copy(update={"message": "x"})
            for write in (
                cluster.save_status(world.run, status),
                cluster.create_pod(world.run, world.spec()),
                cluster.delete_pod(world.run, "first-0-1", "uid", 0),
                cluster.delete_run(world.run),
            ):
                with pytest.raises(Unavailable, match="another one leads"):
                    await write

    asyncio.run(story())
    assert world.api.writes() == []


def test_a_run_that_is_being_deleted_is_gone(world: World) -> None:
    item = world.api.of("trainingruns")[0]
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.cluster.do(world.api.put("trainingruns", item))

    async def story() -> None:
        async with world.connect() as cluster:
            from everstep_operator.cluster.port import RunKey

            with pytest.raises(NotFound, match="being deleted"):
                await cluster.get_run(RunKey("team", "first"))

    asyncio.run(story())


async def _end_watches(world: World) -> None:
    for watch in world.api._watches:
        watch.cancel()


def _node(name: str) -> dict[str, object]:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}}


def _pod(world: World, name: str = "first-0-1", machine: str = "") -> dict[str, object]:
    spec = replace(world.spec(), name=name)
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "labels": spec.labels,
            "ownerReferences": [owner(world.run)],
        },
        "spec": {"containers": [{"name": "trainer"}], **({"nodeName": machine} if machine else {})},
        "status": {"phase": "Pending"},
    }
