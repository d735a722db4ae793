"""Pods that do not start and do not say why: their Events do."""

import asyncio
from datetime import UTC, datetime, timedelta

from everstep_operator.cluster.kubernetes.complaints import PATIENCE, Complaints
from everstep_operator.cluster.kubernetes.pods import Seen, seen
from everstep_operator.plan.waiting import of_pod
from everstep_protocol import labels
from tests.emulated.api import Status
from tests.operator_process.world import World, until

BORN = datetime(2026, 1, 1, tzinfo=UTC)
MISSING = 'MountVolume.SetUp failed for volume "ca" : secret "s3-ca" not found'


def stuck(node: int = 0, reason: str = "ContainerCreating") -> Seen:
    waiting = {"name": "trainer", "state": {"waiting": {"reason": reason}}}
    return seen(
        {
            "metadata": {
                "name": f"first-{node}-1",
                "namespace": "team",
                "uid": f"pod-{node}",
                "resourceVersion": "1",
                "creationTimestamp": BORN.isoformat(),
                "labels": {labels.RUN: "first", labels.ROLE: labels.WORKER, labels.NODE: str(node)},
            },
            "spec": {"nodeName": "node1"},
            "status": {"phase": "Pending", "containerStatuses": [waiting]},
        }
    )


def event(world: World, node: int, reason: str, message: str, seconds: float, type: str = "Warning") -> None:
    world.cluster.create(
        "events",
        {
            "metadata": {"name": f"{reason}-{node}-{seconds}", "namespace": "team"},
            "involvedObject": {"uid": f"pod-{node}"},
            "type": type,
            "reason": reason,
            "message": message,
            "lastTimestamp": (BORN + timedelta(seconds=seconds)).isoformat(),
        },
    )


def reads(world: World) -> int:
    return world.api.requests_made.count(("GET", "events"))


def words(items: list[Seen]) -> list[str]:
    return [item.pod.waiting_reason for item in items]


def test_a_volume_that_cannot_be_mounted_is_told_in_the_kubelets_words(world: World) -> None:
    event(world, 0, "Scheduled", "assigned to node1", 0, "Normal")
    event(world, 0, "FailedMount", MISSING, 4)
    now = BORN + PATIENCE - timedelta(seconds=1)

    async def story() -> None:
        nonlocal now
        async with world.server() as api:
            complaints = Complaints(api, lambda: now)
            assert words(await complaints.explain("run", [stuck()])) == ["ContainerCreating"]
            assert reads(world) == 0, "it is given time to start"
            now = BORN + PATIENCE
            (item,) = await complaints.explain("run", [stuck()])
            why = of_pod(item.pod)
            assert why is not None
            assert (why.reason, why.message) == ("Config", f"first-0-1: FailedMount: {MISSING}")
            await complaints.explain("run", [stuck()])
            assert reads(world) == 1, "once in a while"
            event(world, 0, "Pulling", "pulling image", 30, "Normal")
            now += PATIENCE
            assert words(await complaints.explain("run", [stuck()])) == ["ContainerCreating"], "that trouble is over"

    asyncio.run(story())


def test_of_many_one_is_asked_about_at_a_time_and_each_has_its_turn(world: World) -> None:
    for node in range(3):
        event(world, node, "FailedMount", "mount failed: exit status 32", node)
    pods = [stuck(node) for node in range(3)]

    async def story() -> None:
        async with world.server() as api:
            complaints = Complaints(api, lambda: BORN + PATIENCE)
            for turn in range(1, 4):
                assert words(await complaints.explain("run", pods)).count("FailedMount") == turn
                assert reads(world) == turn
            await complaints.explain("run", pods)
            assert reads(world) == 3

    asyncio.run(story())


def test_a_pod_that_says_why_itself_is_not_asked_about(world: World) -> None:
    async def story() -> None:
        async with world.server() as api:
            complaints = Complaints(api, lambda: BORN + PATIENCE)
            assert words(await complaints.explain("run", [stuck(reason="ErrImagePull")])) == ["ErrImagePull"]

    asyncio.run(story())
    assert reads(world) == 0


def test_without_an_answer_nothing_is_lost(world: World) -> None:
    world.fail("GET", "events", Status(403, "Forbidden", "no"))

    async def story() -> None:
        async with world.server() as api:
            complaints = Complaints(api, lambda: BORN + PATIENCE)
            assert words(await complaints.explain("run", [stuck()])) == ["ContainerCreating"]

    asyncio.run(story())


def test_the_adapter_tells_the_planner(world: World) -> None:
    async def story() -> None:
        async with world.connect() as cluster:
            await cluster.create_pod(world.run, world.spec())
            (pod,) = world.api.of("pods")
            pod["metadata"]["creationTimestamp"] = BORN.isoformat()
            pod["spec"]["nodeName"] = "node1"
            world.cluster.do(world.api.put("pods", pod))
            about = {"involvedObject": {"uid": pod["metadata"]["uid"]}, "type": "Warning", "reason": "FailedMount"}
            metadata = {"name": "e", "namespace": "team"}
            world.cluster.create("events", {"metadata": metadata, **about, "message": MISSING})

            async def told() -> bool:
                return [pod.waiting_reason for pod in await cluster.list_pods(world.run)] == ["FailedMount"]

            await until(told)

    asyncio.run(story())
