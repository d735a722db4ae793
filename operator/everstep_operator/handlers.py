"""The operator process. kopf watches TrainingRuns, logs in and minds signals; the rest is ours.

Its handlers are `on.event` only: they add no finalizers, so that a run can be deleted while no operator is there, and
they do nothing but put the run's key into our queue.
"""

import asyncio
import itertools
import logging
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import kopf
from aiohttp import web

from everstep_operator.api.trainingrun import GROUP, VERSION
from everstep_operator.cluster.kubernetes import (
    Answers,
    ApiServer,
    KubernetesCluster,
    Lease,
    Tokens,
    configuration,
    traced_session,
)
from everstep_operator.cluster.port import ClusterError, Invalid, NotFound, RunKey, Unavailable
from everstep_operator.metrics import CONTENT_TYPE, Metrics
from everstep_operator.queue import KeyedQueue
from everstep_operator.reconcile import POLL_SECONDS, reconcile
from everstep_operator.settings import Settings
from everstep_operator.writes import ProgressWrites
from everstep_protocol.backoff import Backoff, delay

PLURAL = "trainingruns"
#: Runs that are looked at at the same time.
WORKERS = 32
#: Above so many runs that want to be polled, each is less often than every POLL_SECONDS: a poll costs more than a
#: millisecond of CPU. Events, and what is due by the clock, do not wait for it.
POLLED_OFTEN = 500
#: A cluster that does not answer is asked again soon; one that refuses, or a mistake of ours, is given time.
_AWAY = Backoff(initial_seconds=0.5, factor=2.0, max_seconds=5.0)
_REFUSED = Backoff(initial_seconds=1.0, factor=2.0, max_seconds=60.0)
#: API servers send bookmarks once a minute; a watch that has heard nothing for so long hears nothing any more.
DEAF_SECONDS = 300.0
#: kopf's watch is known by the answers with which it begins, and begins anew after this long at the latest.
RUNS_WATCH_SECONDS = 600
#: The Lease is renewed with less patience than it lasts.
LEASE_REQUEST_SECONDS = 3.0
RETRY_SECONDS = 1.0

log = logging.getLogger("everstep.operator")


class Operator:
    """What happens when there is something to look at."""

    def __init__(self, cluster: KubernetesCluster, lease: Lease, metrics: Metrics) -> None:
        self.cluster = cluster
        self.answers = Answers(cluster.run_paths.values())  # to kopf's watches of TrainingRuns
        self.lease = lease
        self.metrics = metrics
        self.queue: KeyedQueue[RunKey] = KeyedQueue(
            self.look, self.after_failure, workers=WORKERS, worked=metrics.acted
        )
        self._writes = ProgressWrites(time.monotonic)
        self._polled: set[RunKey] = set()
        metrics.watch(cluster.runs, self.queue.depth, lease.leading.is_set, self.watched)

    async def look(self, key: RunKey) -> float | None:
        began = time.monotonic()
        self._polled.discard(key)

        def poll_seconds() -> float:
            self._polled.add(key)
            pace = POLL_SECONDS * max(1.0, len(self._polled) / POLLED_OFTEN)
            # Spread, or all runs of one start would be asked in the same moment for ever.
            return delay(Backoff(pace, 1.0, pace), 2, f"{key}/{began}")

        try:
            return await reconcile(self.cluster, key, datetime.now(UTC), self._writes.can_wait, poll_seconds)
        except Invalid as why:
            await self.cluster.report_invalid(key, why)
            return None
        finally:
            self.metrics.reconciled(time.monotonic() - began)

    def after_failure(self, key: RunKey, error: Exception, failures: int) -> float:
        self.metrics.failed(error)
        asked = error.retry_after if isinstance(error, Unavailable) else None
        if isinstance(error, NotFound):
            log.info("%s: %s", key, error)
        elif asked is not None:
            log.warning("%s: %s (asked to wait for %g s, at most %g are)", key, error, asked, _REFUSED.max_seconds)
        elif isinstance(error, ClusterError):
            log.warning("%s: %s", key, error)
        else:
            log.error("%s: a mistake of the operator itself", key, exc_info=error)
        if isinstance(error, Unavailable):
            return max(min(_REFUSED.max_seconds, asked or 0.0), delay(_AWAY, failures + 1, str(key)))
        return delay(_REFUSED, failures + 1, str(key))

    async def listen(self) -> None:
        """Everything that the cluster tells of goes into the queue, of a standby only when it begins to lead."""
        async for event in self.cluster.watch():
            if self.lease.leading.is_set():
                self.queue.add(event.key)

    async def lead(self) -> None:
        """Act only while the Lease is ours, and begin with a look at everything as it is now."""
        while True:
            self.queue.open.clear()
            await self.lease.leading.wait()
            self.queue.clear()  # of an earlier time in the lead; what has become of all that is asked now
            self._polled.clear()
            for failures in itertools.count(1):
                try:
                    keys = await self.cluster.take_over()
                    break
                except ClusterError as error:
                    log.warning("reading all runs and pods: %s", error)
                await asyncio.sleep(delay(_AWAY, failures + 1, self.lease.holder))
            for key in keys:
                self.queue.add(key)
            self.queue.open.set()
            await self.lease.lost.wait()

    # Probes: whether all is well, and what is to be said.

    def healthz(self) -> tuple[bool, str]:
        silent = max(
            self.answers.silent_seconds() - RUNS_WATCH_SECONDS,
            *(informer.silent_seconds() for informer in self.cluster.informers()),
        )
        # Silence while the API server answers nobody is no fault of this process. Restarted again and again it would
        # sit in the kubelet's back-off when the API server is back.
        deaf = min(silent, self.lease.answered_seconds())
        if deaf > DEAF_SECONDS:
            return False, f"a watch has heard nothing for {deaf:.0f} s, although the API server answers"
        return True, "ok"

    def readyz(self) -> tuple[bool, str]:
        """Once everything has been asked for. A namespace that cannot be watched keeps nobody from the others."""
        informers = self.cluster.informers()
        waiting = [i.path for i in informers if not i.synced.is_set() and i.refused is None] + self.answers.waiting()
        if waiting:
            return False, f"not yet listed: {', '.join(waiting)}"
        troubles = [why for why in self.watched().values() if why is not None]
        if len(troubles) == len(self.cluster.run_paths):
            return False, "; ".join(troubles)
        return True, "; ".join(["ok", *(f"but for {why}" for why in troubles)])

    def watched(self) -> dict[str, str | None]:
        """By namespace ("": all of them): why it is not watched; None: it is."""
        return {namespace: self._why_unwatched(namespace, path) for namespace, path in self.cluster.run_paths.items()}

    def _why_unwatched(self, namespace: str, path: str) -> str | None:
        if (refused := self.cluster.refused(namespace)) is not None:
            return refused
        wrong = self.answers.wrong(path)
        return None if wrong is None else f"{path}: {wrong}"


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT. Raises ClusterError: it cannot be started like this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection per run; often 1,024 unless asked for more
    tokens = Tokens.read(settings.token_key_file)
    if settings.namespaces:
        where = ", ".join(settings.namespaces)
        log.info(
            "acting in %s only; without Nodes to read, a lost node is known by its pods and coordinators",
            where,
        )
    connection = await configuration(settings.kubeconfig)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        api = ApiServer(connection, observer=metrics.request)
        stack.push_async_callback(api.close)
        # Its own connections: renewing the Lease waits behind nobody.
        lease_api = ApiServer(connection, observer=metrics.request, request_seconds=LEASE_REQUEST_SECONDS)
        stack.push_async_callback(lease_api.close)
        lease = Lease(lease_api, settings.lease_namespace, settings.lease_name, settings.holder)
        cluster = await stack.enter_async_context(
            KubernetesCluster(
                api,
                tokens,
                settings.render,
                namespaces=settings.namespaces,
                may_write=lease.check,
                saved=metrics.saved,
            )
        )
        operator = Operator(cluster, lease, metrics)
        await stack.enter_async_context(_answering(operator, settings.host, settings.port))
        stack.push_async_callback(lease.release)
        jobs = [lease.run(), operator.lead(), operator.listen(), operator.queue.run(), _kopf(operator, settings)]
        await _first_of(jobs)


async def _first_of(jobs: Sequence[Awaitable[None]]) -> None:
    """All run until one ends: the process is asked to end, or something is broken and it had better be started anew."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@asynccontextmanager
async def _answering(operator: Operator, host: str, port: int) -> Any:
    """Probes and metrics."""

    def probe(question: Callable[[], tuple[bool, str]]) -> Any:
        async def answer(_: web.Request) -> web.Response:
            well, words = question()
            return web.Response(text=f"{words}\n", status=200 if well else 503)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=operator.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/healthz", probe(operator.healthz))
    app.router.add_get("/readyz", probe(operator.readyz))
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        log.info("probes and metrics on %s", ", ".join(f"{a[0]}:{a[1]}" for a in runner.addresses))
        yield
    finally:
        await runner.cleanup()


# --- kopf -----------------------------------------------------------------------------------------------------------


async def _kopf(operator: Operator, settings: Settings) -> None:
    """Until it is asked to end. A watch that breaks in a way that kopf takes for fatal is begun again."""
    while True:
        try:
            await operator.cluster.look_for_kind()  # without TrainingRuns in the cluster kopf would wait for ever
            await kopf.operator(
                registry=registry(operator, settings.kubeconfig),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
            )
            return
        except NotFound:
            why = "this cluster knows no TrainingRuns yet: kubectl apply -f crds/everstep.dev_trainingruns.yaml"
        except Exception as error:
            why = f"the watch of TrainingRuns has ended and is begun again: {error}"
        log.error("%s", why)
        operator.answers.end(why)
        await asyncio.sleep(RETRY_SECONDS)


def registry(operator: Operator, kubeconfig: str | None) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.AiohttpSession:
        found = await configuration(kubeconfig)
        session = await traced_session(found, operator.answers.trace())
        return kopf.AiohttpSession(server=found.host, aiohttp_session=session)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        operator.cluster.run_changed(event["type"], dict(event["object"]))

    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are ours, few, and counted
    settings.scanning.disabled = True  # it would watch CRDs and namespaces, and need the rights to
    settings.execution.default_backoff = 1.0  # instead of a minute
    settings.persistence.consistency_timeout = 0.0  # it writes nothing, so there is nothing to wait for
    settings.networking.request_timeout = 15.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = itertools.repeat(2.0)  # an API server may be away for longer than a minute
    settings.watching.server_timeout = RUNS_WATCH_SECONDS  # whole: an API server reads no decimals
    settings.watching.connect_timeout = 5.0
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 20.0
    return settings
