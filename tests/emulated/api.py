"""An API server in memory. Of the real one it keeps what an operator's correctness hangs on: resourceVersions that
grow, uids, preconditions, label selectors, pages, watches that begin at a version or are told that it is gone, graceful
deletion, the status subresource, and owners that take what they own along.
"""

import asyncio
import copy
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp.web
import kmock

from everstep_operator.api.trainingrun import GROUP, KIND, VERSION

Object = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name

#: Resources by plural: group, version, kind.
RESOURCES = {
    "pods": ("", "v1", "Pod"),
    "nodes": ("", "v1", "Node"),
    "secrets": ("", "v1", "Secret"),
    "services": ("", "v1", "Service"),
    "configmaps": ("", "v1", "ConfigMap"),
    "events": ("", "v1", "Event"),
    "networkpolicies": ("networking.k8s.io", "v1", "NetworkPolicy"),
    "poddisruptionbudgets": ("policy", "v1", "PodDisruptionBudget"),
    "leases": ("coordination.k8s.io", "v1", "Lease"),
    "trainingruns": (GROUP, VERSION, KIND),
    # kopf looks for these two before it begins.
    "namespaces": ("", "v1", "Namespace"),
    "customresourcedefinitions": ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
}


class Status(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.headers = code, reason, headers or {}

    def body(self) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "code": self.code,
            "reason": self.reason,
            "message": str(self),
        }


@dataclass
class Fault:
    """The next `times` requests of this method and resource are answered like this, or not at all."""

    method: str
    plural: str
    answer: Status | None  # None: the connection is closed without an answer
    times: int = 1
    namespace: str | None = None  # None: any
    after: bool = False  # the request is carried out first: the write has happened, and nobody says so


class EmulatedApi(kmock.KubernetesScaffold):
    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[Key, Object] = {}
        self.version = 1_000
        self.oldest = 0  # watches that begin before are told that it is gone
        self.faults: list[Fault] = []
        self.requests_made: list[tuple[str, str]] = []  # method, path below the version
        self.deaf = False  # watches are open and hear nothing
        self.away = False  # nothing is answered
        self._log: list[tuple[int, str, str, Object]] = []  # version, plural, type, object
        self._changed = asyncio.Condition()
        self._pages: dict[str, tuple[list[Object], int]] = {}
        self._watches: set[asyncio.Task[Any]] = set()
        for plural, (group, version, kind) in RESOURCES.items():
            self.resources[kmock.resource(group, version, plural)] = kmock.ResourceInfo(
                kind=kind,
                namespaced=plural not in ("nodes", "namespaces", "customresourcedefinitions"),
                verbs={"get", "list", "watch", "create", "update", "patch", "delete"},
            )

    # For tests.

    def of(self, plural: str) -> list[Object]:
        return [item for (kind, _, _), item in sorted(self.objects.items()) if kind == plural]

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.requests_made if method != "GET" and "leases" not in path]

    async def put(self, plural: str, item: Object, type: str = "MODIFIED") -> Object:
        """Store it as a new version, whatever is there."""
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.objects[_key(plural, item)] = item
        await self._tell(plural, type, item)
        return item

    async def remove(self, plural: str, item: Object) -> None:
        self.version += 1
        gone = self.objects.pop(_key(plural, item), None)
        if gone is None:
            return
        gone = copy.deepcopy(gone)
        gone["metadata"]["resourceVersion"] = str(self.version)
        await self._tell(plural, "DELETED", gone)
        for (kind, _, _), child in list(self.objects.items()):
            owners = [o["uid"] for o in child["metadata"].get("ownerReferences", [])]
            if gone["metadata"]["uid"] in owners and not self._lives(owners):
                await self.delete(kind, child, None)

    async def forget_history(self) -> None:
        """As compaction does: who wants to go on from an old version has to list again; open watches end."""
        self.oldest = self.version
        for watch in self._watches:
            watch.cancel()

    async def changed(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def changed_or(self, other: asyncio.Task[Any], seconds: float | None) -> None:
        change = asyncio.create_task(self.changed())
        try:
            await asyncio.wait([change, other], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    # The requests.

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        if self.away:
            return _hang_up(request)
        resource = request.resource
        if resource is None or resource.plural is None:
            return await super()._handle(request)  # type: ignore[no-any-return]
        plural = resource.plural
        method = str(request.method.value)
        path = "/".join(filter(None, (plural, request.name, request.subresource)))
        self.requests_made.append((method, path))
        fault = self._fault(method, plural, request.namespace)
        try:
            if fault is not None and not fault.after:
                raise fault.answer or _Silence()
            if request.params.get("watch") == "true":
                return await self._watch(request, plural)
            body = await self._answer(request, method, plural)
            if fault is not None:
                raise fault.answer or _Silence()
        except Status as status:
            return aiohttp.web.json_response(status.body(), status=status.code, headers=status.headers)
        except _Silence:
            return _hang_up(request)
        return aiohttp.web.json_response(body, status=201 if method == "POST" else 200)

    def _fault(self, method: str, plural: str, namespace: str | None) -> Fault | None:
        for fault in self.faults:
            there = fault.namespace in (None, namespace)
            if fault.times > 0 and there and (fault.method, fault.plural) == (method, plural):
                fault.times -= 1
                return fault
        return None

    async def _answer(self, request: kmock.Request, method: str, plural: str) -> Object:
        if request.name is None:
            return self._list(request, plural) if method == "GET" else await self._create(request, plural)
        key = (plural, request.namespace or "", request.name)
        item = self.objects.get(key)
        data = json.loads(request.body) if request.body else {}
        if method == "PATCH" and request.headers.get("Content-Type", "").startswith("application/apply-patch"):
            if item is None:
                return copy.deepcopy(await self.put(plural, _born(data), "ADDED"))
            return copy.deepcopy(await self.put(plural, {**item, **_born(data, item)}))
        if item is None:
            raise Status(404, "NotFound", f'{plural} "{request.name}" not found')
        if method == "GET":
            return copy.deepcopy(item)
        if method == "DELETE":
            return await self.delete(plural, item, data)
        _check(data, item, plural)
        changed = copy.deepcopy(item)
        if method == "PUT":
            part = "status" if request.subresource == "status" else "spec"
            changed[part] = data.get(part, {})
        else:
            changed = _merged(changed, data)
        return copy.deepcopy(await self.put(plural, changed))

    async def _create(self, request: kmock.Request, plural: str) -> Object:
        item = _born(json.loads(request.body))
        item["metadata"].setdefault("namespace", request.namespace)
        if _key(plural, item) in self.objects:
            raise Status(409, "AlreadyExists", f'{plural} "{item["metadata"]["name"]}" already exists')
        if plural == "pods":
            item["status"] = {"phase": "Pending"}
        return copy.deepcopy(await self.put(plural, item, "ADDED"))

    async def delete(self, plural: str, item: Object, options: Object | None) -> Object:
        options = options or {}
        uid = (options.get("preconditions") or {}).get("uid")
        metadata = item["metadata"]
        if uid is not None and uid != metadata["uid"]:
            raise Status(409, "Conflict", f"the UID in the precondition ({uid}) does not match {metadata['uid']}")
        if plural != "pods":
            await self.remove(plural, item)
            return {"kind": "Status", "status": "Success"}
        grace = options.get("gracePeriodSeconds", item["spec"].get("terminationGracePeriodSeconds", 30))
        if "deletionTimestamp" in metadata:
            grace = min(grace, metadata["deletionGracePeriodSeconds"])
        changed = copy.deepcopy(item)
        changed["metadata"]["deletionGracePeriodSeconds"] = grace
        changed["metadata"]["deletionTimestamp"] = _time(datetime.now(UTC) + timedelta(seconds=grace))
        if grace == 0:
            await self.remove(plural, item)
            return changed
        return copy.deepcopy(await self.put(plural, changed))

    # Lists and watches.

    def _list(self, request: kmock.Request, plural: str) -> Object:
        if token := request.params.get("continue"):
            if token not in self._pages:
                raise Status(410, "Expired", "The provided continue parameter is too old")
            items, version = self._pages.pop(token)
        else:
            items, version = [copy.deepcopy(item) for item in self._selected(request, plural)], self.version
        limit = int(request.params.get("limit") or len(items) or 1)
        metadata: Object = {"resourceVersion": str(version)}
        if items[limit:]:
            metadata["continue"] = uuid.uuid4().hex
            self._pages[metadata["continue"]] = (items[limit:], version)
        return {"kind": "List", "metadata": metadata, "items": items[:limit]}

    def _selected(self, request: kmock.Request, plural: str) -> Iterator[Object]:
        for item in self.of(plural):
            if _matches(request, item):
                yield item

    async def _watch(self, request: kmock.Request, plural: str) -> aiohttp.web.StreamResponse:
        since = int(request.params.get("resourceVersion") or 0)
        if since < self.oldest:
            raise Status(410, "Expired", f"too old resource version: {since} ({self.oldest})")
        raw = request._raw_request
        assert raw is not None
        response = aiohttp.web.StreamResponse()
        await response.prepare(raw)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            async for event in self._events(request, plural, since):
                await response.write(json.dumps(event).encode() + b"\n")
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._watches.discard(task)
        return response

    async def _events(self, request: kmock.Request, plural: str, since: int) -> AsyncIterator[Object]:
        sent = 0
        while True:
            for version, kind, type, item in self._log[sent:]:
                sent += 1
                if version > since and kind == plural and _matches(request, item) and not self.deaf:
                    yield {"type": type, "object": item}
            async with self._changed:
                if len(self._log) == sent:
                    await self._changed.wait()

    async def _tell(self, plural: str, type: str, item: Object) -> None:
        self._log.append((self.version, plural, type, copy.deepcopy(item)))
        async with self._changed:
            self._changed.notify_all()

    def _lives(self, uids: list[str]) -> bool:
        return any(item["metadata"]["uid"] in uids for item in self.objects.values())


class _Silence(Exception):
    """Close the connection."""


def _hang_up(request: kmock.Request) -> aiohttp.web.Response:
    raw = request._raw_request
    if raw is not None and raw.transport is not None:
        raw.transport.abort()
    return aiohttp.web.Response()


def _key(plural: str, item: Object) -> Key:
    return plural, item["metadata"].get("namespace") or "", item["metadata"]["name"]


def _born(item: Object, before: Object | None = None) -> Object:
    known = (before or {}).get("metadata", {})
    item["metadata"] = {
        "uid": str(uuid.uuid4()),
        "creationTimestamp": _time(datetime.now(UTC)),
        "generation": 1,
        **{name: known[name] for name in ("uid", "creationTimestamp") if name in known},
        **item["metadata"],
    }
    return item


def _check(data: Object, item: Object, plural: str) -> None:
    wanted, there = data.get("metadata") or {}, item["metadata"]
    for name in ("uid", "resourceVersion"):
        if wanted.get(name) not in (None, "", there[name]):
            raise Status(
                409, "Conflict", f"Operation cannot be fulfilled on {plural}: the object has been modified ({name})"
            )


def _merged(item: Object, change: Object) -> Object:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(item.get(name), dict):
            _merged(item[name], value)
        elif value is None:
            item.pop(name, None)
        else:
            item[name] = value
    return item


def _matches(request: kmock.Request, item: Object) -> bool:
    if request.namespace not in (None, item["metadata"].get("namespace")):
        return False
    marks = item["metadata"].get("labels") or {}
    for term in filter(None, request.params.get("labelSelector", "").split(",")):
        name, equals, value = term.partition("=")
        if name not in marks or (equals and marks[name] != value):
            return False
    for term in filter(None, request.params.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        field: Any = item
        for name in path.split("."):
            field = (field or {}).get(name)
        if field != value:
            return False
    return True


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
