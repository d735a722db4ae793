"""The port: all that the operator asks of a cluster. Adapters: `local` (a pod is a process group), later Kubernetes.

Every adapter passes the one conformance suite in tests/cluster/conformance.py.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.plan import model
from everstep_operator.plan.model import Pod, PodSpec, Silence
from everstep_protocol.messages import Intent, Report


class ClusterError(Exception):
    """Something the cluster refused or could not do; the message is a sentence for people."""


class NotFound(ClusterError):
    """No such object (any more)."""


class AlreadyExists(ClusterError):
    """The name is taken. Done only if the holder is ours (same run uid) and not terminating."""


class Conflict(ClusterError):
    """A precondition failed: another resourceVersion, another uid."""


class Refused(ClusterError):
    """The cluster understood and said no: a quota, an admission policy, a missing right, an object that cannot be.

    The message is the cluster's own. Trying again helps only after somebody has changed something.
    """


class Invalid(ClusterError):
    """The object is none that this version understands; the message says what to change.

    `told`: its status says so already. `version`: the object's resourceVersion.
    """

    def __init__(self, message: str, *, told: bool = False, version: int = 0) -> None:
        super().__init__(message)
        self.told, self.version = told, version


class Unavailable(ClusterError):
    """The cluster does not answer now; try again later, after `retry_after` seconds if it said so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class RunKey:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Event:
    """Something about this run may have changed. Level-triggered: look again, do not trust the content."""

    key: RunKey
    what: str  # "run" | "pod" | "resync", for logs only


class Cluster(Protocol):
    async def get_run(self, key: RunKey) -> TrainingRun:
        """The object with metadata.uid, metadata.resourceVersion and status.

        Raises NotFound, also for a run that is being deleted, and Invalid.
        """
        ...

    async def save_status(self, run: TrainingRun, status: Status) -> TrainingRun:
        """Write the status if run.metadata.resourceVersion is still current; the object with its new one.

        Raises Conflict, NotFound.
        """
        ...

    async def list_pods(self, run: TrainingRun) -> list[Pod]:
        """The pods of this run's uid, terminating ones included, from the source itself (never from a stale watch)."""
        ...

    async def create_pod(self, run: TrainingRun, spec: PodSpec) -> Pod:
        """Raises AlreadyExists, also if the holder of the name is terminating, and Refused."""
        ...

    async def delete_pod(self, run: TrainingRun, name: str, uid: str, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL after the grace. A second delete may only shorten the grace.

        0 forgets the pod at once, also if its node does not answer (any more) and cannot confirm its end.

        Raises NotFound, or Conflict if the pod of that name has another uid.
        """
        ...

    async def get_report(self, run: TrainingRun) -> Report | Silence | None:
        """GET /progress of the run's coordinator.

        None: none runs; or it does not answer, and nobody knows more about that.
        """
        ...

    async def send_intent(self, run: TrainingRun, intent: Intent) -> Report | None:
        """PUT the intent; None while the coordinator does not answer."""
        ...

    async def delete_run(self, run: TrainingRun) -> None:
        """Delete the object of this very uid; what it owns goes with it. Raises NotFound, Conflict."""
        ...

    async def post_events(self, run: TrainingRun, events: tuple[model.Event, ...]) -> None:
        """For people who look at the run. Best effort: what cannot be posted is dropped, nothing is raised."""
        ...

    def watch(self) -> AsyncIterator[Event]:
        """Events of all runs, without end. They may repeat, come late or be dropped; a resync comes regularly."""
        ...
