"""The Kubernetes adapter: implements cluster/port.py with an API server."""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import ValidationError

from everstep_operator.api.manifest import sentences
from everstep_operator.api.trainingrun import API_VERSION, GROUP, KIND, VERSION, Status, TrainingRun
from everstep_operator.cluster import render
from everstep_operator.cluster.kubernetes.api import APPLY, MERGE_PATCH, ApiServer, MaybeRefused
from everstep_operator.cluster.kubernetes.complaints import Complaints
from everstep_operator.cluster.kubernetes.coordinators import Coordinators, Tokens
from everstep_operator.cluster.kubernetes.events import Events
from everstep_operator.cluster.kubernetes.informer import Informer, list_all
from everstep_operator.cluster.kubernetes.pods import Seen, seen
from everstep_operator.cluster.kubernetes.view import MachineView, PodView, machine
from everstep_operator.cluster.port import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Event,
    Invalid,
    NotFound,
    Refused,
    RunKey,
    Unavailable,
)
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.plan import model
from everstep_operator.plan.model import Pod, PodSpec, Silence
from everstep_protocol import labels
from everstep_protocol.messages import Intent, Report

FIELD_MANAGER = "everstep"
PLURAL = "trainingruns"
#: So often each run is read from the source and looked at, whatever the watches say.
RESYNC_SECONDS = 300.0
#: What was applied longer ago is applied again before the next pod: somebody may have deleted it meanwhile.
SURE_SECONDS = 60.0
#: reason of a run that was admitted and cannot be understood.
INVALID = "InvalidSpec"

#: Where objects of a kind live, below /namespaces/<namespace>/.
_PLACES = {
    "Service": ("/api/v1", "services"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
}

log = logging.getLogger(__name__)


class KubernetesCluster:
    """Watches while it is entered: `async with KubernetesCluster(…) as cluster`."""

    def __init__(
        self,
        api: ApiServer,
        tokens: Tokens,
        settings: RenderSettings,
        *,
        namespaces: Sequence[str] = (),
        resync_seconds: float = RESYNC_SECONDS,
        may_write: Callable[[], None] = lambda: None,
        saved: Callable[[TrainingRun, Status], None] = lambda run, status: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            namespaces: the only ones that are looked at. None: all, and Nodes as well.
            may_write: raises Unavailable while this process must not change anything, because another one leads.
            saved: told of each status that was written, and of the run before that.
        """
        self._api = api
        self._tokens = tokens
        self._coordinators = Coordinators(tokens, settings.coordinator_port)
        self._settings = settings
        self._resync_seconds = resync_seconds
        self._may_write = may_write
        self._saved = saved
        self._clock = clock
        self._events = Events(api)
        self._complaints = Complaints(api)
        self._machines = MachineView(self._machine_changed)
        self._looking = asyncio.Lock()
        self._pods: dict[str, PodView] = {}  # by namespace; "": all of them
        self._pod_informers: dict[str, Informer] = {}
        #: By namespace: where its TrainingRuns are.
        self.run_paths: dict[str, str] = {}
        for namespace in namespaces or ("",):
            place = f"/namespaces/{namespace}" if namespace else ""
            self._pods[namespace] = view = PodView(self._tell_of_pod)
            path = f"/api/v1{place}/pods"
            self._pod_informers[namespace] = Informer(api, path, seen, view, selector=labels.RUN_UID)
            self.run_paths[namespace] = f"/apis/{GROUP}/{VERSION}{place}/{PLURAL}"
        self._machine_informers = [] if namespaces else [Informer(api, "/api/v1/nodes", machine, self._machines)]
        self._runs: dict[RunKey, TrainingRun | Invalid] = {}
        self._runs_are_told = False
        # run uid: name of a child: digest of what was applied last, and when
        self._applied: dict[str, dict[str, tuple[str, datetime]]] = {}
        self._watchers: set[asyncio.Queue[Event]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        jobs = [informer.run() for informer in self.informers()]
        self._tasks = [asyncio.create_task(job) for job in (*jobs, self._events.run(), self._resync())]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._coordinators.close()

    def informers(self) -> list[Informer]:
        return [*self._pod_informers.values(), *self._machine_informers]

    async def synced(self) -> None:
        """Until all there was at the start has been seen."""
        for informer in self.informers():
            await informer.synced.wait()

    def refused(self, namespace: str) -> str | None:
        """What the API server says, if pods and Nodes may not be watched there."""
        informers = [self._pod_informers[namespace], *self._machine_informers]
        return next((f"{i.path}: {i.refused}" for i in informers if i.refused is not None), None)

    async def take_over(self) -> list[RunKey]:
        """Read everything from the source, as of now: another process has been acting until a moment ago.

        A namespace that may not be read, such as one that was deleted with its roles, keeps nobody from the others.
        """
        for informer in self._machine_informers:
            await informer.list()
        refusals: list[ClusterError] = []
        items = []
        for namespace, path in self.run_paths.items():
            try:
                await self._pod_informers[namespace].list()
                items += (await list_all(self._api, path, {}, dict))[0]
            except (Refused, MaybeRefused) as error:  # an API server that lets us read the others knows its roles
                refusals.append(error)
        if len(refusals) == len(self.run_paths):
            raise refusals[0]
        alive = [item for item in items if not _is_leaving(item)]
        for item in alive:
            self._remember(item)
        return [_key(item) for item in alive]

    # The run.

    async def look_for_kind(self) -> None:
        """Raises NotFound: the cluster knows no TrainingRuns."""
        await self._api.request("GET", f"/apis/{GROUP}/{VERSION}")

    def run_changed(self, type: str | None, item: dict[str, Any]) -> None:
        """From whoever watches TrainingRuns. Once told, this adapter relies on being told of all changes."""
        self._runs_are_told = True
        key = _key(item)
        if type == "DELETED" or _is_leaving(item):
            self._forget(key, item["metadata"]["uid"])
        else:
            self._remember(item)
        self._tell(key, "run")

    def runs(self) -> list[TrainingRun]:
        """Those that this adapter has been told of, as they were last."""
        return [run for run in self._runs.values() if isinstance(run, TrainingRun)]

    async def get_run(self, key: RunKey) -> TrainingRun:
        known = self._runs.get(key)
        if known is None:
            item = await self._api.request("GET", _run_path(key))
            if _is_leaving(item):
                raise NotFound(f"{key} is being deleted")
            known = self._remember(item)
        if isinstance(known, Invalid):
            raise known
        return known

    async def save_status(self, run: TrainingRun, status: Status) -> TrainingRun:
        metadata = run.metadata
        key = RunKey(metadata.namespace, metadata.name)
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            },
            "spec": run.spec.model_dump(mode="json", exclude_none=True),  # required, and ignored here
            "status": status.model_dump(mode="json", exclude_none=True),
        }
        self._may_write()
        try:
            item = await self._api.request("PUT", f"{_run_path(key)}/status", body=body)
        except (Conflict, NotFound, Unavailable):
            self._runs.pop(key, None)  # whatever we know of it is not what is there
            raise
        saved = self._remember(item)
        if isinstance(saved, Invalid):
            raise saved
        self._saved(run, status)
        return saved

    async def report_invalid(self, key: RunKey, why: Invalid) -> None:
        """Say in the status of a run what is wrong with it. The planner, who otherwise does, cannot read it."""
        if why.told:
            return
        self._may_write()
        change = {"status": {"reason": INVALID, "message": str(why)}}
        self._remember(
            await self._api.request("PATCH", f"{_run_path(key)}/status", body=change, content_type=MERGE_PATCH)
        )

    async def delete_run(self, run: TrainingRun) -> None:
        self._may_write()
        key = RunKey(run.metadata.namespace, run.metadata.name)
        options = {"preconditions": {"uid": run.metadata.uid}, "propagationPolicy": "Background"}
        await self._api.request("DELETE", _run_path(key), body=options)
        self._forget(key, run.metadata.uid)

    async def post_events(self, run: TrainingRun, events: tuple[model.Event, ...]) -> None:
        for event in events:
            self._events.post(run, event)

    def _remember(self, item: dict[str, Any]) -> TrainingRun | Invalid:
        key = _key(item)
        run = _parsed(item)
        known = self._runs.get(key)
        if known is not None and _version(known) >= _version(run):
            return known
        if self._runs_are_told:
            self._runs[key] = run
        return run

    def _forget(self, key: RunKey, uid: str) -> None:
        known = self._runs.get(key)
        if isinstance(known, Invalid) or (known is not None and known.metadata.uid == uid):
            del self._runs[key]
        self._applied.pop(uid, None)
        self._of(key.namespace)[0].forget(uid)
        self._complaints.forget(uid)
        self._coordinators.forget(uid)

    def _forget_gone(self) -> None:
        """Runs whose end nobody told, because the watch had to begin anew. Too much forgotten is only done again."""
        known = {run.metadata.uid for run in self.runs()} | {i.pod.run_uid for v in self._pods.values() for i in v}
        self._applied = {uid: applied for uid, applied in self._applied.items() if uid in known}
        self._complaints.forget_all_but(known)
        self._coordinators.forget_all_but(known)

    # Pods.

    async def list_pods(self, run: TrainingRun) -> list[Pod]:
        view, informer = self._of(run.metadata.namespace)
        if not (informer.watching and view.is_sure(run.metadata.uid)):
            path = f"/api/v1/namespaces/{run.metadata.namespace}/pods"
            ours = {"labelSelector": f"{labels.RUN_UID}={run.metadata.uid}"}
            items, version = await list_all(self._api, path, ours, seen)
            view.listed_run(run.metadata.uid, items, version)
        items = await self._complaints.explain(run.metadata.uid, view.of(run.metadata.uid))
        await self._look_for_machines(items)
        return [self._with_machine(item) for item in items]

    async def create_pod(self, run: TrainingRun, spec: PodSpec) -> Pod:
        await self._apply_children(run)
        body = render.pod(run, spec, self._settings)
        self._may_write()
        with self._in_doubt(run):
            path = f"/api/v1/namespaces/{run.metadata.namespace}/pods"
            # A misspelt field of podTemplate would be dropped in silence otherwise.
            item = await self._api.request("POST", path, params={"fieldValidation": "Strict"}, body=body)
        created = seen(item)
        self._of(run.metadata.namespace)[0].wrote(created)
        if spec.role == labels.COORDINATOR:
            await self._apply_children(run)  # its Service stays for as long as it does
        return created.pod

    async def delete_pod(self, run: TrainingRun, name: str, uid: str, grace_seconds: float) -> None:
        view, _ = self._of(run.metadata.namespace)
        options = {"gracePeriodSeconds": math.ceil(grace_seconds), "preconditions": {"uid": uid}}
        self._may_write()
        try:
            with self._in_doubt(run):
                item = await self._api.request("DELETE", _pod_path(run, name), body=options)
        except NotFound:
            view.removed(run.metadata.uid, uid)
            raise
        still_there = item.get("kind") == "Pod" and (
            item["metadata"].get("deletionGracePeriodSeconds") or item["metadata"].get("finalizers")
        )
        if still_there:
            view.wrote(seen(item))
        else:
            view.removed(run.metadata.uid, uid)

    def _of(self, namespace: str) -> tuple[PodView, Informer]:
        namespace = namespace if namespace in self._pods else ""
        return self._pods[namespace], self._pod_informers[namespace]

    @contextmanager
    def _in_doubt(self, run: TrainingRun) -> Iterator[None]:
        """A write that may have happened although nobody said so, or that found something that we did not know of."""
        try:
            yield
        except (Unavailable, AlreadyExists, Conflict, asyncio.CancelledError):
            self._of(run.metadata.namespace)[0].doubt(run.metadata.uid)
            raise

    async def _look_for_machines(self, items: list[Seen]) -> None:
        """A Node that the view does not hold may be a new one, of which a late watch has not told: ask the source."""
        wanted = {item.pod.machine for item in items if item.pod.machine}

        def known() -> bool:
            return all(self._machines.get(name) or self._machines.missed_since(name) for name in wanted)

        if known():
            return
        async with self._looking:  # once for all runs whose pods came to the same new Node
            for informer in () if known() else self._machine_informers:
                await informer.list()
                wanted |= {item.pod.machine for view in self._pods.values() for item in view if item.pod.machine}
                self._machines.miss(wanted, self._clock())

    def _with_machine(self, item: Seen) -> Pod:
        pod = item.pod
        found = self._machines.get(pod.machine)
        if found is None:
            return replace(pod, machine_lost_since=self._machines.missed_since(pod.machine))
        return replace(pod, machine_lost_since=found.lost_since)

    # What pods need beside themselves.

    async def _apply_children(self, run: TrainingRun) -> None:
        """What has changed since this process applied it a moment ago; nothing in most cases."""
        applied = self._applied.setdefault(run.metadata.uid, {})
        now = self._clock()

        def is_there(name: str, digest: str) -> bool:
            before = applied.get(name)
            return before is not None and before[0] == digest and now - before[1] < timedelta(seconds=SURE_SECONDS)

        if not is_there("Secret", ""):
            await self._create_secret(run)
            applied["Secret"] = ("", now)
        coordinators = [
            item.pod
            for item in self._of(run.metadata.namespace)[0].of(run.metadata.uid)
            if item.pod.role == labels.COORDINATOR
        ]
        for child in render.children(run, self._settings, coordinators):
            name = f"{child['kind']}/{child['metadata']['name']}"
            digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()
            if is_there(name, digest):
                continue
            place, plural = _PLACES[child["kind"]]
            path = f"{place}/namespaces/{run.metadata.namespace}/{plural}/{child['metadata']['name']}"
            params = {"fieldManager": FIELD_MANAGER, "force": "true"}
            self._may_write()
            await self._api.request("PATCH", path, params=params, body=child, content_type=APPLY)
            applied[name] = (digest, now)

    async def _create_secret(self, run: TrainingRun) -> None:
        """Created, never read: the operator needs no right to see Secrets."""
        body = render.token_secret(run, self._tokens.of(run.metadata.uid))
        self._may_write()
        with suppress(AlreadyExists):  # by us, earlier: its name holds a hash of the run's uid
            await self._api.request("POST", f"/api/v1/namespaces/{run.metadata.namespace}/secrets", body=body)

    # The coordinator.

    async def get_report(self, run: TrainingRun) -> Report | Silence | None:
        address = self._coordinator_address(run)
        return None if address is None else await self._coordinators.report(address, run.metadata.uid)

    async def send_intent(self, run: TrainingRun, intent: Intent) -> Report | None:
        self._may_write()
        address = self._coordinator_address(run)
        return None if address is None else await self._coordinators.tell(address, run.metadata.uid, intent)

    def _coordinator_address(self, run: TrainingRun) -> str | None:
        running = [
            item
            for item in self._of(run.metadata.namespace)[0].of(run.metadata.uid)
            if item.pod.role == labels.COORDINATOR and item.pod.phase == "Running" and item.address
        ]
        newest = max(running, key=lambda item: item.pod.attempt, default=None)
        return None if newest is None else newest.address

    # Events.

    async def watch(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    def _tell(self, key: RunKey, what: str) -> None:
        for queue in self._watchers:
            queue.put_nowait(Event(key, what))

    def _tell_of_pod(self, key: RunKey) -> None:
        self._tell(key, "pod")

    def _machine_changed(self, name: str) -> None:
        for key in {item.run for view in self._pods.values() for item in view if item.pod.machine == name}:
            self._tell(key, "node")

    async def _resync(self) -> None:
        """Each run once in a while, evenly spread."""
        while True:
            self._forget_gone()
            keys = {*self._runs, *(item.run for view in self._pods.values() for item in view)}
            for key in sorted(keys, key=str):
                self._runs.pop(key, None)
                self._tell(key, "resync")
                await asyncio.sleep(self._resync_seconds / len(keys))
            if not keys:
                await asyncio.sleep(self._resync_seconds)


def _key(item: dict[str, Any]) -> RunKey:
    return RunKey(item["metadata"]["namespace"], item["metadata"]["name"])


def _run_path(key: RunKey) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{key.namespace}/{PLURAL}/{key.name}"


def _pod_path(run: TrainingRun, name: str) -> str:
    return f"/api/v1/namespaces/{run.metadata.namespace}/pods/{name}"


def _is_leaving(item: dict[str, Any]) -> bool:
    """Deleted, and kept only until what it owns is gone: nothing may be created for it any more."""
    return "deletionTimestamp" in item["metadata"]


def _parsed(item: dict[str, Any]) -> TrainingRun | Invalid:
    try:
        return TrainingRun.model_validate(item, by_alias=True, by_name=False)
    except ValidationError as error:
        message = "; ".join(sentences(error))[:8_192]
        told = (item.get("status") or {}).get("message") == message
        return Invalid(message, told=told, version=int(item["metadata"]["resourceVersion"]))


def _version(run: TrainingRun | Invalid) -> int:
    return run.version if isinstance(run, Invalid) else int(run.metadata.resource_version)
