"""Who of several operators acts: the holder of a Lease.

A Lease does not fence: a holder that was stopped for half a minute would go on where it was. So `check` is asked before
each write, by a clock that runs on while the process, or the whole machine, does not; statuses carry a
resourceVersion as well.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from everstep_operator.cluster.kubernetes.api import ApiServer
from everstep_operator.cluster.port import ClusterError, Conflict, NotFound, Unavailable

#: Others wait this long for a sign of the holder; it stops acting earlier; it renews often.
DURATION_SECONDS, DEADLINE_SECONDS, RETRY_SECONDS = 10.0, 7.0, 2.0

log = logging.getLogger(__name__)


class Lease:
    def __init__(
        self,
        api: ApiServer,
        namespace: str,
        name: str,
        holder: str,
        *,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """`holder`: unique to this process; a restarted one is another."""
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name, self.holder = namespace, name, holder
        self._clock = clock
        self._until = clock()  # we may act so long
        self._unanswered = clock()  # when a request of ours was last left without an answer
        self._mine: dict[str, Any] | None = None  # the object as we wrote it last
        self._seen: tuple[str, str] | None = None  # somebody else's last sign, and
        self._seen_at = 0.0  # when we saw it first: their clock is not ours
        self.leading = asyncio.Event()
        self.lost = asyncio.Event()

    def check(self) -> None:
        """Raises Unavailable: this process must not act now."""
        if self._clock() >= self._until:
            raise Unavailable(f"the lease {self._namespace}/{self._name} is not held by this process")

    def answered_seconds(self) -> float:
        """For how long the API server has answered all that was asked here, every RETRY_SECONDS."""
        return self._clock() - self._unanswered

    async def run(self) -> None:
        """Acquire, renew, and acquire again after it was lost, until cancelled."""
        while True:
            try:
                await self._try()
            except ClusterError as error:
                if isinstance(error, Unavailable):
                    self._unanswered = self._clock()
                log.warning("the lease %s/%s: %s", self._namespace, self._name, error)
            if self.leading.is_set() and self._clock() >= self._until:
                self._lose()
            await asyncio.sleep(RETRY_SECONDS)

    async def release(self) -> None:
        """Let the next one go on at once. Best effort: after some seconds it does anyway."""
        mine, self._until = self._mine, self._clock()
        if mine is None:
            return
        self._lose()
        with suppress(ClusterError):
            try:
                await self._free(mine)
            except Conflict:  # a renewal was under way when we were told to end, and has arrived
                now = await self._api.request("GET", f"{self._collection}/{self._name}")
                if now["spec"].get("holderIdentity") == self.holder:
                    await self._free(now)

    async def _free(self, lease: dict[str, Any]) -> None:
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        await self._api.request("PUT", f"{self._collection}/{self._name}", body={**lease, "spec": spec})

    async def _try(self) -> None:
        began = self._clock()
        try:
            lease = self._mine or await self._api.request("GET", f"{self._collection}/{self._name}")
        except NotFound:
            await self._take(began, None)
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        sign = (holder, spec.get("renewTime") or "")
        if sign != self._seen:
            self._seen, self._seen_at = sign, began
        silent = began - self._seen_at
        if holder in ("", self.holder) or silent >= float(spec.get("leaseDurationSeconds") or DURATION_SECONDS):
            await self._take(began, lease)

    async def _take(self, began: float, lease: dict[str, Any] | None) -> None:
        """Write that it is ours; `lease`: the version that this must replace."""
        old = (lease or {}).get("spec") or {}
        renews = old.get("holderIdentity") == self.holder
        spec = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": int(DURATION_SECONDS),
            "renewTime": _now(),
            "acquireTime": old.get("acquireTime") if renews else _now(),
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if renews or lease is None else 1),
        }
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            if lease is None:
                self._mine = await self._api.request("POST", self._collection, body=body)
            else:
                self._mine = await self._api.request("PUT", f"{self._collection}/{self._name}", body=body)
        except Unavailable:
            self._mine = None  # it may have been written: look
            raise
        except ClusterError as error:
            self._mine = None
            if not isinstance(error, Conflict):
                raise
            self._lose()  # somebody else was faster
            return
        self._until = began + DEADLINE_SECONDS
        if not self.leading.is_set():
            log.info("leading: the lease %s/%s is held by %s", self._namespace, self._name, self.holder)
            self.lost.clear()
            self.leading.set()

    def _lose(self) -> None:
        self._until = min(self._until, self._clock())
        if self.leading.is_set():
            log.warning("no longer leading: the lease %s/%s is lost", self._namespace, self._name)
            self.leading.clear()
            self.lost.set()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
