"""The keyed queue, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from everstep_operator.queue import KeyedQueue
from tests.operator_process.virtual_time import run


class Desk:
    """A queue whose work takes a second, and a record of what was looked at when."""

    def __init__(self, workers: int = 2, takes: float = 1.0) -> None:
        self.looks: list[tuple[str, float]] = []
        self.waited: list[float] = []
        self.at_once = self.most_at_once = 0
        self.busy: set[str] = set()
        self.answers: dict[str, list[float | Exception | None]] = {}
        self.takes = takes
        self.queue: KeyedQueue[str] = KeyedQueue(
            self.work, self.after_failure, workers=workers, worked=self.waited.append
        )

    async def work(self, key: str) -> float | None:
        assert key not in self.busy, "two looks at one key at the same time"
        self.busy.add(key)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.looks.append((key, asyncio.get_running_loop().time()))
        await asyncio.sleep(self.takes)
        self.at_once -= 1
        self.busy.discard(key)
        answer = self.answers[key].pop(0) if self.answers.get(key) else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def after_failure(self, key: str, error: Exception, failures: int) -> float:
        return 10.0**failures

    def times(self, key: str) -> list[float]:
        return [time for name, time in self.looks if name == key]


def told(desk: Desk, story: Callable[[], Coroutine[Any, Any, None]], seconds: float = 2_000.0) -> None:
    async def whole() -> None:
        runner = asyncio.create_task(desk.queue.run())
        await story()
        await asyncio.sleep(seconds)
        runner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await runner

    run(whole())


def test_a_key_is_looked_at_once_however_often_it_was_added() -> None:
    desk = Desk()

    async def story() -> None:
        for _ in range(5):
            desk.queue.add("a")

    told(desk, story)
    assert desk.looks == [("a", 0.0)]
    assert desk.waited == [1.0]


def test_what_happens_during_a_look_makes_another_one_when_it_is_over() -> None:
    desk = Desk()

    async def story() -> None:
        desk.queue.add("a")
        await asyncio.sleep(0.5)
        desk.queue.add("a")
        desk.queue.add("a")

    told(desk, story)
    assert desk.times("a") == [0.0, 1.0]
    assert desk.waited == [1.0, 1.5]


def test_no_more_workers_than_allowed_and_everybody_gets_a_turn() -> None:
    desk = Desk(workers=3)

    async def story() -> None:
        for key in "abcdefg":
            desk.queue.add(key)
        assert desk.queue.depth() == 7
        await asyncio.sleep(10)
        assert desk.queue.depth() == 0

    told(desk, story)
    assert desk.most_at_once == 3
    assert sorted(key for key, _ in desk.looks) == list("abcdefg")


def test_a_look_that_wants_another_gets_it_unless_an_event_comes_first() -> None:
    desk = Desk()
    desk.answers["a"] = [30.0, 30.0]

    async def story() -> None:
        desk.queue.add("a")
        await asyncio.sleep(11)
        desk.queue.add("a")

    told(desk, story)
    assert desk.times("a") == [0.0, 11.0, 42.0], "the newest look decides when the next one is"
    assert desk.waited == [1.0, 1.0], "what was planned has waited for nobody"


def test_the_earlier_of_two_wishes_counts() -> None:
    desk = Desk()

    async def story() -> None:
        desk.queue.add("a", 50)
        desk.queue.add("a", 5)
        desk.queue.add("a", 500)

    told(desk, story)
    assert desk.times("a") == [5.0]


def test_failures_wait_longer_and_longer_until_one_look_succeeds() -> None:
    desk = Desk()
    error = OSError("away")
    desk.answers["a"] = [error, error, 3.0, error]

    async def story() -> None:
        desk.queue.add("a")

    told(desk, story)
    assert desk.times("a") == [0.0, 11.0, 112.0, 116.0, 127.0], "10, 100, then 3 as wished, then 10 again"


@pytest.mark.parametrize("when", [0.5, 5.0], ids=["during the look", "after it"])
def test_an_event_does_not_shorten_the_wait_after_a_failure(when: float) -> None:
    desk = Desk()
    desk.answers["a"] = [OSError("refused"), OSError("refused")]

    async def story() -> None:
        desk.queue.add("a")
        await asyncio.sleep(when)
        desk.queue.add("a")
        await asyncio.sleep(200)
        desk.queue.add("a")

    told(desk, story)
    assert desk.times("a") == [0.0, 11.0, 112.0, 200.0 + when], "and after a success events are heard at once again"


def test_a_closed_queue_begins_nothing_and_forgets_nothing() -> None:
    desk = Desk()

    async def story() -> None:
        desk.queue.open.clear()
        desk.queue.add("a")
        await asyncio.sleep(40)
        assert desk.looks == []
        desk.queue.open.set()

    told(desk, story)
    assert desk.times("a") == [40.0]


def test_a_queue_that_was_cleared_has_forgotten_also_how_long_anybody_waited() -> None:
    desk = Desk()
    desk.answers["a"] = [OSError("refused")]

    async def story() -> None:
        desk.queue.add("a")
        await asyncio.sleep(5)
        desk.queue.open.clear()
        desk.queue.add("a")
        desk.queue.add("b")
        await asyncio.sleep(1_000)
        desk.queue.clear()
        desk.queue.add("a")
        desk.queue.open.set()

    told(desk, story)
    assert desk.looks == [("a", 0.0), ("a", 1_005.0)]
    assert desk.waited == [1.0]
