"""What the operator tells Prometheus of itself and of its runs."""

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "everstep_api_requests",
            "Requests to the API server; code 0: no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "everstep_api_request_seconds",
            "Until the API server answered.",
            ("verb",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._reconcile_seconds = Histogram(
            "everstep_reconcile_seconds", "One look at one run.", buckets=_SECONDS, registry=self.registry
        )
        self._errors = Counter(
            "everstep_reconcile_errors", "Looks that ended with an error.", ("error",), registry=self.registry
        )
        self._event_to_action = Histogram(
            "everstep_event_to_action_seconds",
            "From hearing of a change to having acted on it.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._restarts = Counter(
            "everstep_restarts", "Restarts of runs after failures.", ("cause",), registry=self.registry
        )

    def request(self, verb: str, resource: str, status: int, seconds: float) -> None:
        self._requests.labels(verb, resource, str(status)).inc()
        if verb != "watch":
            self._request_seconds.labels(verb).observe(seconds)

    def reconciled(self, seconds: float) -> None:
        self._reconcile_seconds.observe(seconds)

    def failed(self, error: Exception) -> None:
        self._errors.labels(type(error).__name__).inc()

    def acted(self, seconds: float) -> None:
        self._event_to_action.observe(seconds)

    def saved(self, run: TrainingRun, status: Status) -> None:
        """A status was written: count what is new in it."""
        before = run.status.restarts.by_cause
        for cause, number in status.restarts.by_cause.items():
            self._restarts.labels(cause).inc(max(0, number - before.get(cause, 0)))

    def watch(
        self,
        runs: Callable[[], Iterable[TrainingRun]],
        depth: Callable[[], int],
        leads: Callable[[], bool],
        watched: Callable[[], Mapping[str, str | None]],
    ) -> None:
        self.registry.register(_State(runs, depth, leads, watched))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _State(Collector):
    """What is, read when it is asked for."""

    def __init__(
        self,
        runs: Callable[[], Iterable[TrainingRun]],
        depth: Callable[[], int],
        leads: Callable[[], bool],
        watched: Callable[[], Mapping[str, str | None]],
    ) -> None:
        self._runs, self._depth, self._leads, self._watched = runs, depth, leads, watched

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()  # asked at registration, when there is nothing to tell yet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("everstep_queue_depth", "Runs that wait to be looked at.", self._depth())
        yield GaugeMetricFamily("everstep_leader", "1: this operator acts; 0: another one does.", int(self._leads()))
        watched = GaugeMetricFamily(
            "everstep_namespace_watched",
            "1: runs and pods of this namespace (empty: of all) are watched; 0: /readyz says why not.",
            labels=("namespace",),
        )
        for namespace, why in self._watched().items():
            watched.add_metric((namespace,), why is None)
        yield watched
        phases = GaugeMetricFamily("everstep_runs", "Runs by phase.", labels=("phase",))
        of_run = ("namespace", "run")
        goodput = GaugeMetricFamily("everstep_run_goodput_ratio", "Productive share of a run's time.", labels=of_run)
        step = GaugeMetricFamily("everstep_run_step", "Optimizer steps finished.", labels=of_run)
        ready = GaugeMetricFamily("everstep_run_nodes_ready", "Nodes of a run whose pod runs.", labels=of_run)
        count: Count[str] = Count({str(phase): 0 for phase in Phase})
        if not self._leads():
            return  # the leader tells of them; a sum over all operators counts each run once
        for run in self._runs():
            status, names = run.status, (run.metadata.namespace, run.metadata.name)
            count[str(status.phase or Phase.PENDING)] += 1
            if status.phase is not None and status.phase.over:
                continue
            ready.add_metric(names, status.nodes.ready)
            if status.goodput is not None:
                goodput.add_metric(names, status.goodput.ratio)
            if status.progress is not None:
                step.add_metric(names, status.progress.step)
        for phase, number in count.items():
            phases.add_metric((phase,), number)
        yield from (phases, ready, goodput, step)
