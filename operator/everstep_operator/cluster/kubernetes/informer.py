"""List, then watch, for ever: what an API server has of one kind, told as it changes."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from everstep_operator.cluster.kubernetes.api import ApiServer, Gone
from everstep_operator.cluster.port import ClusterError, Refused
from everstep_protocol.backoff import Backoff, delay

PAGE = 500
#: API servers send a bookmark about once a minute. A watch that has been silent for longer is dead.
SILENCE_SECONDS = 90.0
#: The server is asked to end each watch after this long.
WATCH_SECONDS = 600
#: So often in a row it is tried to go on from where a watch broke. A server restored from a backup never gets there.
RESUMED = 3
_BACKOFF = Backoff(initial_seconds=0.2, factor=2.0, max_seconds=5.0)

log = logging.getLogger(__name__)

T = TypeVar("T")


class Listener(Protocol[T]):
    def listed(self, items: list[T], version: int) -> None:
        """All that there is, as of that resourceVersion."""
        ...

    def changed(self, type: str, item: T, version: int) -> None:
        """One object was ADDED, MODIFIED or DELETED; its last state."""
        ...


class Informer:
    """Keeps a listener informed about the objects of one path."""

    def __init__(
        self,
        api: ApiServer,
        path: str,
        parse: Callable[[dict[str, Any]], T],
        listener: Listener[T],
        *,
        selector: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parse`: keeps of each object what is needed; whole ones would take a hundred times the memory."""
        self._api = api
        self.path = path
        self._parse: Callable[[dict[str, Any]], Any] = parse
        self._listener: Listener[Any] = listener
        self._params = {"labelSelector": selector} if selector else {}
        self._clock = clock
        self._heard = clock()
        self._version: int | None = None  # up to which the listener has been told everything
        self._told = ""  # what was logged last
        #: The first list is complete.
        self.synced = asyncio.Event()
        #: A watch is open, so that changes arrive.
        self.watching = False
        #: What the API server said, if it says no.
        self.refused: str | None = None

    def silent_seconds(self) -> float:
        """Since the last sign of life of the API server, bookmarks included."""
        return self._clock() - self._heard

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            try:
                if self._version is None:
                    self._version = await self.list()
                await self._watch(self._version)
                failures = 0
                continue
            except Gone:
                self._version = None  # too old to go on from
                continue
            except ClusterError as error:
                self._complain(error)
                if failures >= RESUMED:
                    self._version = None
            except Exception:
                self._version = None
                log.exception("watching %s: a mistake of the operator itself; everything is listed anew", self.path)
            failures += 1
            await asyncio.sleep(delay(_BACKOFF, failures + 1, self.path))

    async def list(self) -> int:
        """Ask the source for all there is, tell the listener, and return the resourceVersion that it is as of."""
        items, version = await list_all(self._api, self.path, self._params, self._parse)
        self._heard = self._clock()
        self._listener.listed(items, version)
        self.synced.set()
        self.refused = None
        return version

    async def _watch(self, version: int) -> None:
        """Until the server ends it, or it breaks; it can be gone on from what was heard last."""
        params = {**self._params, "resourceVersion": str(version), "timeoutSeconds": str(WATCH_SECONDS)}
        try:
            async with self._api.watch(self.path, params, SILENCE_SECONDS) as events:
                self.watching = True
                self.refused, self._told = None, ""
                self._heard = self._clock()
                async for event in events:
                    self._heard = self._clock()
                    version = version_of(event["object"])
                    if event["type"] != "BOOKMARK":
                        self._listener.changed(event["type"], self._parse(event["object"]), version)
                    self._version = version
        finally:
            self.watching = False

    def _complain(self, error: ClusterError) -> None:
        """Once, however often it is tried again: a namespace that was deleted may never come back."""
        if isinstance(error, Refused):
            self.refused = str(error)
            self._heard = self._clock()  # the word of one who lives
        if str(error) != self._told:
            self._told = str(error)
            log.warning("watching %s: %s", self.path, error)


async def list_all(
    api: ApiServer, path: str, params: dict[str, str], parse: Callable[[dict[str, Any]], T]
) -> tuple[list[T], int]:
    """All objects, page by page, and the resourceVersion that they are as of."""
    items: list[T] = []
    token, again = "", True
    while True:
        try:
            page = await api.request("GET", path, params={**params, "limit": str(PAGE), "continue": token})
        except Gone:
            if not again:
                raise
            items, token, again = [], "", False  # reading took longer than the server keeps its past: once more
            continue
        items += map(parse, page.get("items") or [])
        token = page["metadata"].get("continue") or ""
        if not token:
            return items, version_of(page)


def version_of(item: dict[str, Any]) -> int:
    """resourceVersions are decimal numbers that grow, for all objects of one kind together."""
    return int(item["metadata"]["resourceVersion"])
