"""Keys that want to be looked at: each by one worker at a time, at once or later, and once however often it was asked.

What a key says is never kept, only that there is something to look at: the look finds out what.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class KeyedQueue(Generic[K]):
    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        after_failure: Callable[[K, Exception, int], float],
        *,
        workers: int,
        worked: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """
        Args:
            work: looks at a key; returns seconds until it wants to look again, None: when it is added again.
            after_failure: key, what `work` raised, how often in a row → seconds until it is tried again, whatever
                happens meanwhile: who was refused, or told to come later, would be refused again.
            workers: so many keys are worked on at the same time.
            worked: told how long a key that was added for now has waited until its work was done, in seconds.
        """
        self._work = work
        self._after_failure = after_failure
        self._worked = worked
        self._free = workers
        self._due: dict[K, float] = {}
        self._order: list[tuple[float, int, K]] = []  # a heap; entries that `_due` contradicts are void
        self._count = itertools.count()
        self._busy: set[K] = set()
        self._asked: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}  # of those whose last look failed
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Clear it, and nothing new is begun.
        self.open = asyncio.Event()
        self.open.set()

    def add(self, key: K, after: float = 0.0) -> None:
        """Look at it after so many seconds, or earlier if that was asked for already."""
        now = asyncio.get_running_loop().time()
        if after <= 0:
            self._asked.setdefault(key, now)
        due = max(now + after, self._not_before.get(key, 0.0))
        if self._due.get(key, due + 1) > due:
            self._due[key] = due
            heapq.heappush(self._order, (due, next(self._count), key))
            self._woken.set()

    def clear(self) -> None:
        """Forget all keys; what is being worked on goes on."""
        for of_keys in (self._due, self._order, self._asked, self._failures, self._not_before):
            of_keys.clear()

    def depth(self) -> int:
        """Keys that are due and wait for a worker, or are being worked on."""
        now = asyncio.get_running_loop().time()
        return len(self._busy) + sum(due <= now for due in self._due.values())

    async def run(self) -> None:
        """Until cancelled; then what is being worked on is cancelled, too."""
        try:
            while True:
                await self.open.wait()
                self._woken.clear()
                pause = self._begin_what_is_due()
                try:
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin_what_is_due(self) -> float | None:
        """Returns the seconds until the next one is due; None: wait to be woken."""
        now = asyncio.get_running_loop().time()
        later: list[tuple[float, int, K]] = []
        try:
            while self._order:
                entry = due, _, key = heapq.heappop(self._order)
                if self._due.get(key) != due:
                    continue
                if key in self._busy:
                    later.append(entry)  # its turn comes when it is done
                elif due > now or self._free == 0:
                    later.append(entry)
                    return due - now if due > now else None
                else:
                    del self._due[key]
                    self._start(key)
            return None
        finally:
            for entry in later:
                heapq.heappush(self._order, entry)

    def _start(self, key: K) -> None:
        self._free -= 1
        self._busy.add(key)
        task = asyncio.create_task(self._look(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self, key: K) -> None:
        asked = self._asked.pop(key, None)
        again: float | None
        try:
            again = await self._work(key)
            self._failures.pop(key, None)
            self._not_before.pop(key, None)
            if asked is not None:
                self._worked(asyncio.get_running_loop().time() - asked)
        except Exception as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            again = self._after_failure(key, error, failures)
            self._not_before[key] = asyncio.get_running_loop().time() + again
            self._due.pop(key, None)  # what was asked meanwhile waits, too
        finally:
            self._free += 1
            self._busy.discard(key)
            self._woken.set()
        if again is not None:
            self._asked_later(key, again)

    def _asked_later(self, key: K, after: float) -> None:
        asked = key in self._asked
        self.add(key, after)
        if not asked:
            self._asked.pop(key, None)  # a look that was planned has not waited for anything
