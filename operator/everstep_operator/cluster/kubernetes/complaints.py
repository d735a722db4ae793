"""What is said of pods that do not start and do not say why: volumes that cannot be mounted show in Events only."""

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from everstep_operator.cluster.kubernetes.api import ApiServer
from everstep_operator.cluster.kubernetes.informer import list_all
from everstep_operator.cluster.kubernetes.pods import ON_ITS_WAY, Seen, time
from everstep_operator.cluster.port import ClusterError

#: A pod is given so long to start before its Events are read, and they are not read more often than that.
PATIENCE = timedelta(seconds=10)


@dataclass(frozen=True)
class Complaint:
    asked: datetime
    reason: str = ""  # "": the latest Event is no warning
    message: str = ""


class Complaints:
    """The latest Event about each pod that keeps silent, if it is a warning.

    Of each run one pod is asked about at a time: a thousand that pull a large image must not become as many requests.
    """

    def __init__(self, api: ApiServer, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._api = api
        self._clock = clock
        self._heard: dict[str, dict[str, Complaint]] = {}  # run uid: pod uid

    async def explain(self, run_uid: str, items: list[Seen]) -> list[Seen]:
        """The same pods, with a word and a sentence where there is a complaint. Best effort: nothing is raised."""
        now = self._clock()
        silent = {item.pod.uid: item for item in items if _keeps_silent(item) and now - item.created >= PATIENCE}
        if not silent:
            self.forget(run_uid)
            return items
        known = self._heard.get(run_uid, {})
        heard = self._heard[run_uid] = {uid: complaint for uid, complaint in known.items() if uid in silent}
        never = Complaint(datetime.min.replace(tzinfo=UTC))
        uid, item = min(silent.items(), key=lambda pair: heard.get(pair[0], never).asked)
        if now - heard.get(uid, never).asked >= PATIENCE:
            heard[uid] = await self._latest(item, now)
        return [_with(item, heard.get(item.pod.uid)) for item in items]

    def forget(self, run_uid: str) -> None:
        self._heard.pop(run_uid, None)

    def forget_all_but(self, run_uids: Set[str]) -> None:
        self._heard = {uid: heard for uid, heard in self._heard.items() if uid in run_uids}

    async def _latest(self, item: Seen, now: datetime) -> Complaint:
        path = f"/api/v1/namespaces/{item.run.namespace}/events"
        about = {"fieldSelector": f"involvedObject.uid={item.pod.uid}"}
        try:
            events, _ = await list_all(self._api, path, about, dict)
        except ClusterError:
            return Complaint(now)
        latest = max(events, key=_when, default={})
        if latest.get("type") != "Warning":
            return Complaint(now)
        return Complaint(now, latest["reason"], f"{latest['reason']}: {latest.get('message') or ''}")


def _keeps_silent(item: Seen) -> bool:
    pod = item.pod
    return pod.phase == "Pending" and bool(pod.machine) and pod.waiting_reason in ("", *ON_ITS_WAY)


def _with(item: Seen, complaint: Complaint | None) -> Seen:
    if complaint is None or not complaint.reason:
        return item
    return replace(item, pod=replace(item.pod, waiting_reason=complaint.reason, message=complaint.message))


def _when(event: dict[str, Any]) -> datetime:
    last = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return time(last or event["metadata"]["creationTimestamp"])
