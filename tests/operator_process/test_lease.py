"""Who leads. Clocks are the test's; only the pause between two tries is real, and short."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from everstep_operator.cluster.kubernetes import Lease
from everstep_operator.cluster.kubernetes.lease import DEADLINE_SECONDS, DURATION_SECONDS
from everstep_operator.cluster.port import Unavailable
from tests.emulated.api import Status
from tests.operator_process.world import World, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep_operator.cluster.kubernetes.lease.RETRY_SECONDS", 0.01)


class Candidate:
    def __init__(self, lease: Lease, clock: list[float]) -> None:
        self.lease = lease
        self._clock = clock
        self.task = asyncio.create_task(lease.run())

    def pass_time(self, seconds: float) -> None:
        self._clock[0] += seconds

    @property
    def acts(self) -> bool:
        try:
            self.lease.check()
        except Unavailable:
            return False
        return True


@asynccontextmanager
async def candidates(world: World, *names: str) -> AsyncIterator[list[Candidate]]:
    async with AsyncExitStack() as stack:
        found: list[Candidate] = []
        for name in names:
            api = await stack.enter_async_context(world.server())
            clock = [0.0]
            lease = Lease(api, "team", "everstep", name, clock=lambda clock=clock: clock[0])
            found.append(Candidate(lease, clock))
            if len(found) == 1:
                await lease.leading.wait()
        yield found
        for candidate in found:
            candidate.task.cancel()
        await asyncio.gather(*(candidate.task for candidate in found), return_exceptions=True)


async def many_tries(world: World) -> None:
    """Until everybody has asked a few times."""
    seen = len(world.api.requests_made)
    await until(lambda: len(world.api.requests_made) > seen + 12)


def test_a_lease_runs_out_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """CLOCK_MONOTONIC would stand still."""
    asleep = 0.0
    monkeypatch.setattr(time, "clock_gettime", lambda clock: asleep if clock == time.CLOCK_BOOTTIME else 0.0)

    async def story() -> None:
        nonlocal asleep
        async with world.server() as api:
            lease = Lease(api, "team", "everstep", "a")
            await lease._try()
            lease.check()
            asleep = 3_600.0
            with pytest.raises(Unavailable):
                lease.check()

    asyncio.run(story())


def test_one_leads_and_goes_on_leading(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a", "b") as (a, b):
            for _ in range(4):
                await many_tries(world)
                a.pass_time(DEADLINE_SECONDS - 1)
                b.pass_time(DEADLINE_SECONDS - 1)
                await many_tries(world)
                assert (a.acts, b.acts) == (True, False)

    asyncio.run(story())


def test_a_holder_that_is_silent_is_followed_and_knows_it_first(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a", "b") as (a, b):
            await many_tries(world)
            a.task.cancel()
            await asyncio.gather(a.task, return_exceptions=True)
            await many_tries(world)
            b.pass_time(DURATION_SECONDS - 1)
            await many_tries(world)
            assert not b.acts, "it may still be there"
            a.pass_time(DEADLINE_SECONDS)
            assert not a.acts, "whatever it was about to write, it does not"
            b.pass_time(1)
            await until(lambda: b.acts)

    asyncio.run(story())


def test_a_holder_that_was_stopped_may_not_write_when_it_goes_on(world: World) -> None:
    """SIGSTOP for half a minute: the clock went on, the event loop did not."""

    async def story() -> None:
        async with candidates(world, "a") as (a,):
            assert a.acts
            a.pass_time(30)
            assert not a.acts, "before it has asked anybody"
            await until(lambda: a.acts)

    asyncio.run(story())


def test_a_stopped_holder_finds_that_another_leads(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a", "b") as (a, b):
            await many_tries(world)
            a.task.cancel()
            await asyncio.gather(a.task, return_exceptions=True)
            await many_tries(world)
            b.pass_time(DURATION_SECONDS)
            await until(lambda: b.acts)
            a.pass_time(30)
            a.task = asyncio.create_task(a.lease.run())
            await a.lease.lost.wait()
            await many_tries(world)
            assert (a.acts, b.acts) == (False, True)

    asyncio.run(story())


def test_released_it_is_taken_at_once(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a", "b") as (a, b):
            await many_tries(world)
            a.task.cancel()
            await asyncio.gather(a.task, return_exceptions=True)
            await a.lease.release()
            assert not a.acts
            await until(lambda: b.acts)  # b's clock stands still

    asyncio.run(story())


def test_it_is_released_although_a_renewal_was_under_way(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a", "b") as (a, b), world.server() as api:
            a.task.cancel()
            await asyncio.gather(a.task, return_exceptions=True)
            arrives = Lease(api, "team", "everstep", "a", clock=lambda: 0.0)  # what a has sent and not heard of
            renewal = asyncio.create_task(arrives.run())
            await arrives.leading.wait()
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await a.lease.release()
            await until(lambda: b.acts)  # b's clock stands still

    asyncio.run(story())


def test_after_an_outage_the_holder_leads_again(world: World) -> None:
    async def story() -> None:
        async with candidates(world, "a") as (a,):
            for method in ("PUT", "GET"):
                world.fail(method, "leases", Status(503, "ServiceUnavailable", "away"), times=10_000)
            a.pass_time(DEADLINE_SECONDS)
            await a.lease.lost.wait()
            assert not a.acts
            world.api.faults.clear()
            await until(lambda: a.acts)
            assert a.lease.leading.is_set()

    asyncio.run(story())
