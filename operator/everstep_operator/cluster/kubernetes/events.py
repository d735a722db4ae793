"""Events for `kubectl describe`: few, and those of the same words counted instead of repeated."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from everstep_operator.api.trainingrun import API_VERSION, KIND, TrainingRun
from everstep_operator.cluster.kubernetes.api import MERGE_PATCH, ApiServer
from everstep_operator.cluster.port import ClusterError, NotFound
from everstep_operator.plan.model import Event

COMPONENT = "everstep-operator"
#: Events of the same words within this time are one with a count.
SAME_SECONDS = 600.0
#: So many wait for a slow API server; more are dropped.
WAITING = 1_000

log = logging.getLogger(__name__)


@dataclass
class _Posted:
    name: str
    count: int
    last: datetime


class Events:
    """Posts in the background: what people read must not hold up what is done."""

    def __init__(self, api: ApiServer, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._api = api
        self._clock = clock
        self._waiting: asyncio.Queue[tuple[TrainingRun, Event]] = asyncio.Queue(WAITING)
        self._posted: dict[tuple[str, str, str], _Posted] = {}

    def post(self, run: TrainingRun, event: Event) -> None:
        try:
            self._waiting.put_nowait((run, event))
        except asyncio.QueueFull:
            names = (run.metadata.namespace, run.metadata.name)
            log.warning("an event of %s/%s is lost, %d wait already: %s", *names, WAITING, event.message)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            run, event = await self._waiting.get()
            try:
                await self._post(run, event)
            except ClusterError as error:
                log.warning("an event of %s/%s is lost: %s", run.metadata.namespace, run.metadata.name, error)

    async def _post(self, run: TrainingRun, event: Event) -> None:
        now = self._clock()
        fresh = now - timedelta(seconds=SAME_SECONDS)
        self._posted = {words: posted for words, posted in self._posted.items() if posted.last > fresh}
        path = f"/api/v1/namespaces/{run.metadata.namespace}/events"
        words = (run.metadata.uid, event.reason, event.message)
        posted = self._posted.get(words)
        if posted is not None:
            posted.count, posted.last = posted.count + 1, now
            with suppress(NotFound):
                change = {"count": posted.count, "lastTimestamp": _time(now)}
                await self._api.request("PATCH", f"{path}/{posted.name}", body=change, content_type=MERGE_PATCH)
                return
        digest = hashlib.sha256("/".join([*words, now.isoformat()]).encode()).hexdigest()[:12]
        name = f"{run.metadata.name}.{digest}"
        await self._api.request("POST", path, body=_event(run, event, name, now))
        self._posted[words] = _Posted(name, 1, now)


def _event(run: TrainingRun, event: Event, name: str, now: datetime) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": run.metadata.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": run.metadata.namespace,
            "name": run.metadata.name,
            "uid": run.metadata.uid,
            "resourceVersion": run.metadata.resource_version,
        },
        "type": event.type,
        "reason": event.reason[:128],
        "message": event.message[:1_024],
        "source": {"component": COMPONENT},
        "firstTimestamp": _time(now),
        "lastTimestamp": _time(now),
        "count": 1,
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
