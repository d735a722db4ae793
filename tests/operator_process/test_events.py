"""Events of a run: in the API, few, and counted when the words are the same."""

import asyncio
from datetime import UTC, datetime, timedelta

from everstep_operator.cluster.kubernetes.events import SAME_SECONDS, Events
from everstep_operator.plan.model import Event
from tests.emulated.api import Status
from tests.operator_process.world import World, until

STARTED = Event("Normal", "Started", "the pods run")
FAILED = Event("Warning", "RankFailed", "rank 1 died")


def test_an_event_is_there_once_and_counted(world: World) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    async def story() -> None:
        nonlocal now
        async with world.server() as api:
            events = Events(api, lambda: now)
            poster = asyncio.create_task(events.run())
            for event in (STARTED, FAILED, FAILED, FAILED):
                events.post(world.run, event)
            await until(lambda: [item["count"] for item in world.api.of("events")].count(3) == 1)
            now += timedelta(seconds=SAME_SECONDS + 1)
            events.post(world.run, FAILED)
            await until(lambda: len(world.api.of("events")) == 3)
            poster.cancel()
            await asyncio.gather(poster, return_exceptions=True)

    asyncio.run(story())
    event = next(item for item in world.api.of("events") if item["count"] == 3)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "RankFailed", "rank 1 died")
    assert event["involvedObject"]["uid"] == world.run.metadata.uid
    assert event["metadata"]["namespace"] == "team"


def test_one_that_cannot_be_posted_is_lost_and_the_next_is_not(world: World) -> None:
    world.fail("POST", "events", Status(403, "Forbidden", "namespace is being terminated"))

    async def story() -> None:
        async with world.server() as api:
            events = Events(api)
            poster = asyncio.create_task(events.run())
            events.post(world.run, FAILED)
            events.post(world.run, STARTED)
            await until(lambda: world.api.of("events"))
            poster.cancel()
            await asyncio.gather(poster, return_exceptions=True)

    asyncio.run(story())
    assert [item["reason"] for item in world.api.of("events")] == ["Started"]
