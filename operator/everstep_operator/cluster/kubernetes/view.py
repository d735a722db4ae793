"""What the operator knows of pods, nodes and runs between two looks at the source. Pure, and never goes back in time.

Watches tell of changes late. An operator that has created a pod and does not find it in what its watch told so far
would create another one. So what our own requests answered goes in here at once, each pod keeps the version that was
seen last, and an older word about it is not believed (docs/adr/0011-informer-view.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from everstep_operator.cluster.kubernetes.pods import Seen, time
from everstep_operator.cluster.port import RunKey


class PodView:
    """Pods by the uid of the run that controls them; those of others are not seen.

    `told` hears of each run about whose pods there is news.
    """

    def __init__(self, told: Callable[[RunKey], None] = lambda key: None) -> None:
        self._told = told
        self._pods: dict[str, dict[str, Seen]] = {}  # run uid: pod uid: pod
        # uid of a pod of which we know, and the watch does not yet, that it is gone: version in which it was seen last
        self._gone: dict[str, int] = {}
        # run uid, "" for all runs: version up to which a list or the watch has told everything. A pod that is not here
        # although it is older has ended by then, whatever an answer says that was given earlier and comes later.
        self._as_of: dict[str, int] = {}
        self._unsure: set[str] = set()  # uids of runs for which a request ended without an answer

    def of(self, run_uid: str) -> list[Seen]:
        return sorted(self._pods.get(run_uid, {}).values(), key=lambda s: s.pod.name)

    def __iter__(self) -> Iterator[Seen]:
        for pods in self._pods.values():
            yield from pods.values()

    # From the source and from watches.

    def listed(self, items: list[Seen], version: int) -> None:
        """All pods of all runs."""
        runs: dict[str, list[Seen]] = {uid: [] for uid in self._pods}
        for item in items:
            if item.pod.run_uid:
                runs.setdefault(item.pod.run_uid, []).append(item)
        for uid, of_run in runs.items():
            before = self._pods.get(uid, {})
            self.listed_run(uid, of_run, version)
            now = self._pods.get(uid, {})
            if now != before:
                for key in {pod.run for pod in (*before.values(), *now.values())}:
                    self._told(key)
        there = {item.pod.uid for item in items}
        self._gone = {uid: last for uid, last in self._gone.items() if uid in there or last > version}
        self._told_up_to(version)

    def listed_run(self, run_uid: str, items: list[Seen], version: int) -> None:
        """All pods of one run."""
        before = self._pods.get(run_uid, {})
        now = {uid: pod for uid, pod in before.items() if pod.version > version}  # created since
        for item in items:
            if item.pod.run_uid == run_uid:
                known = before.get(item.pod.uid)
                if self._is_news(item, before):
                    now[item.pod.uid] = item
                elif known is not None:
                    now[item.pod.uid] = known
        self._unsure.discard(run_uid)
        self._as_of[run_uid] = max(version, self._as_of.get(run_uid, 0))
        self._put(run_uid, now)

    def changed(self, type: str, item: Seen, version: int) -> None:
        uid, run_uid = item.pod.uid, item.pod.run_uid
        pods = self._pods.get(run_uid, {})
        news = run_uid != "" and (uid in pods if type == "DELETED" else self._is_news(item, pods))
        self._told_up_to(version)
        if type == "DELETED":
            self._gone.pop(uid, None)
            pods.pop(uid, None)
        elif news:
            pods[uid] = item
        self._put(run_uid, pods)
        if news:
            self._told(item.run)

    # From answers to our own requests.

    def wrote(self, item: Seen) -> None:
        pods = self._pods.get(item.pod.run_uid, {})
        if self._is_news(item, pods):
            self._put(item.pod.run_uid, pods | {item.pod.uid: item})

    def removed(self, run_uid: str, uid: str) -> None:
        pods = self._pods.get(run_uid, {})
        if (known := pods.pop(uid, None)) is not None:
            self._gone[uid] = known.version  # until the watch says so, too
        self._put(run_uid, pods)

    # Doubt.

    def doubt(self, run_uid: str) -> None:
        """A write of ours may or may not have happened: ask the source before anything else is done."""
        self._unsure.add(run_uid)

    def is_sure(self, run_uid: str) -> bool:
        return run_uid not in self._unsure

    def forget(self, run_uid: str) -> None:
        """The run is gone: nothing will be done for it any more. What its pods do is still told."""
        self._unsure.discard(run_uid)

    def _is_news(self, item: Seen, pods: dict[str, Seen]) -> bool:
        if item.pod.uid in self._gone:
            return False
        known = pods.get(item.pod.uid)
        if known is not None:
            return known.version < item.version
        return item.version > max(self._as_of.get(item.pod.run_uid, 0), self._as_of.get("", 0))

    def _told_up_to(self, version: int) -> None:
        """Of all runs; what was asked of one of them before then says no more than that."""
        version = max(version, self._as_of.get("", 0))
        later = {uid: as_of for uid, as_of in self._as_of.items() if as_of > version}
        self._as_of = {**later, "": version}

    def _put(self, run_uid: str, pods: dict[str, Seen]) -> None:
        if pods:
            self._pods[run_uid] = pods
        else:
            self._pods.pop(run_uid, None)


@dataclass(frozen=True)
class Machine:
    """Of a Node."""

    name: str
    lost_since: datetime | None


def machine(item: dict[str, Any]) -> Machine:
    metadata, status = item["metadata"], item.get("status") or {}
    ready = next((c for c in status.get("conditions") or [] if c["type"] == "Ready"), None)
    if ready is None:
        lost: str | None = metadata["creationTimestamp"]
    else:
        lost = None if ready["status"] == "True" else ready.get("lastTransitionTime") or metadata["creationTimestamp"]
    return Machine(metadata["name"], None if lost is None else time(lost))


class MachineView:
    """Nodes by name. `told` hears the names of those that were lost or found."""

    def __init__(self, told: Callable[[str], None] = lambda name: None) -> None:
        self._told = told
        self._machines: dict[str, Machine] = {}
        self._missed: dict[str, datetime] = {}  # since when the source has been known not to hold them
        self._as_of = 0

    def get(self, name: str) -> Machine | None:
        return self._machines.get(name)

    def missed_since(self, name: str) -> datetime | None:
        return self._missed.get(name)

    def miss(self, names: set[str], now: datetime) -> None:
        """Of these that pods are bound to, those that are not there do not exist: the source was just asked."""
        self._missed = {name: self._missed.get(name, now) for name in names - self._machines.keys()}

    def listed(self, items: list[Machine], version: int) -> None:
        if version < self._as_of:
            return
        self._as_of = version
        before, self._machines = self._machines, {item.name: item for item in items}
        for name in before.keys() | self._machines.keys():
            if before.get(name) != self._machines.get(name):
                self._changed(name)

    def changed(self, type: str, item: Machine, version: int) -> None:
        if version <= self._as_of:
            return  # of a watch that lags behind a list
        self._as_of = version
        before = self._machines.pop(item.name, None)
        if type != "DELETED":
            self._machines[item.name] = item
        if before != self._machines.get(item.name):
            self._changed(item.name)

    def _changed(self, name: str) -> None:
        if name in self._machines:
            self._missed.pop(name, None)
        self._told(name)
