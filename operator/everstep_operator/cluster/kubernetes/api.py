"""Requests to an API server: plain dicts in and out, and each way to fail as one of the port's errors.

Of the `kubernetes` package only the configuration is used: kubeconfig, service account, exec plugins, token refresh.
Its models refuse fields that they do not know (docs/adr/0010-kubernetes-client.md).
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from everstep_operator.cluster.port import AlreadyExists, ClusterError, Conflict, NotFound, Refused, Unavailable

#: Of one request that is no watch.
REQUEST_SECONDS = 15.0
CONNECT_SECONDS = 5.0
#: aiohttp lets go of a TLS connection some turns of the event loop after it was closed.
CLOSE_SECONDS = 0.1
#: An API server that has just started knows no roles yet and answers 403. One that lasts longer is meant.
FORBIDDEN_SECONDS = 30.0
#: Lines of a watch are objects; a TrainingRun or a Pod may have 1.5 MB.
LINE_LIMIT = 4 << 20

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

#: Told of each answer: verb, resource, HTTP status (0: none came), seconds.
Observer = Callable[[str, str, int, float], None]


class Gone(ClusterError):
    """410: that resourceVersion or continue token is too old; list again."""


class MaybeRefused(Unavailable):
    """403 for want of a right. An API server that starts knows none yet: whether it is meant, time will tell."""


async def configuration(kubeconfig: str | None = None) -> Configuration:
    """How to reach the API server: that kubeconfig, or the pod's service account, or $KUBECONFIG, or ~/.kube/config.

    Raises:
        ClusterError: there is none that can be read.
    """
    found = Configuration()
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, client_configuration=found
            )
    except (config.ConfigException, OSError) as error:
        where = kubeconfig or os.environ.get("KUBECONFIG") or "the service account or ~/.kube/config"
        raise ClusterError(
            f"no cluster to connect to: {where}: {error}; give --kubeconfig FILE or set KUBECONFIG"
        ) from None
    return found


async def authorization(configuration: Configuration) -> dict[str, str]:
    """Headers of a request, from a token that is renewed when it has to be."""
    settings: Mapping[str, Any] = await configuration.auth_settings()
    return {s["key"]: s["value"] for s in settings.values() if s["in"] == "header" and s["value"]}


async def traced_session(configuration: Configuration, trace: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    """For a client that is not ours. Its token is of now: after a 401 it has to ask for another session."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_tls(configuration)),
        headers=await authorization(configuration),
        proxy=configuration.proxy or None,
        trace_configs=[trace],
    )


class ApiServer:
    """One API server. To be closed."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        observer: Observer = lambda verb, resource, status, seconds: None,
        clock: Callable[[], float] = time.monotonic,
        connections: int = 100,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._configuration = configuration
        self._observe = observer
        self._clock = clock
        self._request_seconds = request_seconds
        self._forbidden_since: dict[tuple[str, str, str], float] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=_tls(configuration)),
            read_bufsize=LINE_LIMIT // 2,
        )

    async def close(self) -> None:
        await self._session.close()
        await asyncio.sleep(CLOSE_SECONDS)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
    ) -> dict[str, Any]:
        """The object in the answer.

        Raises:
            NotFound, AlreadyExists, Conflict, Gone, Refused, Unavailable: as the port says. After Unavailable it is
                not known whether a write has happened.
        """
        patience = aiohttp.ClientTimeout(total=self._request_seconds, connect=CONNECT_SECONDS)
        async with self._answer(method, path, params, body, content_type, patience) as response:
            try:
                answer: dict[str, Any] = await response.json(content_type=None)
            except ValueError as error:
                raise Unavailable(f"the answer to {method} {path} is no JSON: {error}") from None
            return answer

    @asynccontextmanager
    async def watch(
        self, path: str, params: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """An open watch: events {type, object}, bookmarks among them, until the server ends it.

        Raises:
            Gone: the resourceVersion is too old. Unavailable: nothing came for `silence_seconds`, or the line broke.
        """
        params = {**params, "watch": "true", "allowWatchBookmarks": "true"}
        patience = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=silence_seconds)
        async with self._answer("GET", path, params, None, JSON, patience) as response:

            async def events() -> AsyncIterator[dict[str, Any]]:
                try:
                    async for line in response.content:
                        event: dict[str, Any] = json.loads(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            raise self._error(
                                int(status.get("code") or 500), status, {}, ("watch", _resource(path), _namespace(path))
                            )
                        yield event
                except ValueError as error:  # no JSON, or a line that is too long
                    raise Unavailable(f"the watch of {path} cannot be read: {error}") from None

            try:
                yield events()
            finally:
                # A TLS goodbye in the middle of an endless answer waits for the peer, for longer than we may live.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        patience: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = (_verb(method, path, params), _resource(path))
        right = (*what, _namespace(path))
        began, status = self._clock(), 0
        try:
            async with self._session.request(
                method,
                self._configuration.host.rstrip("/") + path,
                params=params,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type, "Accept": JSON, **await authorization(self._configuration)},
                timeout=patience,
                server_hostname=self._configuration.tls_server_name or None,
                proxy=self._configuration.proxy or None,
            ) as response:
                status = response.status
                self._observe(*what, status, self._clock() - began)
                if status >= 400:
                    raise self._error(status, await _status(response), response.headers, right)
                self._forbidden_since.pop(right, None)
                yield response
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            if not status:
                self._observe(*what, 0, self._clock() - began)
            how = str(error) or type(error).__name__
            raise Unavailable(f"the API server does not answer ({what[0]} {what[1]}): {how}") from None

    def _error(
        self, code: int, status: Mapping[str, Any], headers: Mapping[str, str], right: tuple[str, str, str]
    ) -> ClusterError:
        """The port's error for a Status object; `right`: what was asked for, verb, resource and namespace."""
        message = str(status.get("message") or f"HTTP {code} for {right[0]} {right[1]}")
        if code == 403 and _is_missing_right(message):
            since = self._forbidden_since.setdefault(right, self._clock())
            if self._clock() - since < FORBIDDEN_SECONDS:
                return MaybeRefused(f"{message} (an API server that starts says so; asking again)")
            return Refused(message)
        if code == 404:
            return NotFound(message)
        if code == 409:
            return AlreadyExists(message) if status.get("reason") == "AlreadyExists" else Conflict(message)
        if code == 410:
            return Gone(message)
        if code == 500 and "failed calling webhook" in message:
            return Refused(message)  # somebody's webhook is away, perhaps for long: that belongs in the run's status
        if code == 429 or code >= 500 or code in (401, 408):
            return Unavailable(message, _retry_after(status, headers))
        return Refused(message)  # 400, 403, 413, 415, 422, …: the same request gets the same answer


def _tls(configuration: Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https://"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def _status(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The Status object of an error; what is none gives its text."""
    text = await response.text(errors="replace")
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    return status if isinstance(status, dict) else {"message": text.strip()[:500]}


def _retry_after(status: Mapping[str, Any], headers: Mapping[str, str]) -> float | None:
    told = headers.get("Retry-After") or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return None if told is None else float(told)
    except ValueError:  # a date: no API server sends one
        return None


def _is_missing_right(message: str) -> bool:
    """What the authorizer says; quotas and admission, which come after it, say it in other words."""
    return " cannot " in message and " resource " in message


def _verb(method: str, path: str, params: Mapping[str, str] | None) -> str:
    """As RBAC calls it."""
    if method == "GET":
        if params and params.get("watch"):
            return "watch"
        return "list" if _is_collection(path) else "get"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _is_collection(path: str) -> bool:
    return len(_below_version(path)) == 1


def _resource(path: str) -> str:
    """pods, trainingruns/status, …"""
    parts = _below_version(path)
    return "/".join([*parts[:1], *parts[2:]])


def _namespace(path: str) -> str:
    """ "": it is not in one."""
    _, _, below = path.partition("/namespaces/")
    return below.partition("/")[0]


def _below_version(path: str) -> list[str]:
    """[resource], [resource, name] or [resource, name, subresource]; []: the version itself, which lists its kinds."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    return parts[2:] if parts[:1] == ["namespaces"] and len(parts) > 2 else parts
