"""The values that the planner reads and returns. Nothing here touches a cluster."""

from dataclasses import dataclass, field

from everstep_operator.api.trainingrun import Status
from everstep_protocol.messages import Intent, Report
from everstep_protocol.reasons import Failure


@dataclass(frozen=True)
class PodSpec:
    """A pod that should exist, in words that every adapter can render: a Kubernetes Pod, or a local process group."""

    name: str  # deterministic: run, short hash of its uid, role or node, attempt
    role: str  # labels.WORKER or labels.COORDINATOR
    node: int | None  # index of the node in the run; None for the coordinator
    attempt: int  # 1 ..
    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)  # the adapter adds token, addresses, store credentials
    working_dir: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    grace_seconds: float = 30.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Pod:
    """A pod as observed. Judged by its main container, not by the phase of a whole that may hold sidecars."""

    name: str
    uid: str
    role: str
    node: int | None
    attempt: int
    phase: str  # Pending | Running | Succeeded | Failed
    terminating: bool = False
    exit_code: int | None = None
    failure: Failure | None = None  # its termination message
    message: str = ""  # why it is Pending, in the cluster's words
    disrupted: bool = False  # evicted, preempted, drained: not counted as a restart
    run_uid: str = ""

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Observed:
    """All that is known of a run's surroundings at one moment."""

    pods: tuple[Pod, ...] = ()  # only those with the run's uid
    report: Report | None = None  # the coordinator's; None while it does not answer


@dataclass(frozen=True)
class CreatePod:
    spec: PodSpec


@dataclass(frozen=True)
class DeletePod:
    name: str
    uid: str  # a precondition: never another pod of that name
    grace_seconds: float


@dataclass(frozen=True)
class SendIntent:
    """Tell the coordinator the operator's wish. Idempotent."""

    intent: Intent


Action = CreatePod | DeletePod | SendIntent


@dataclass(frozen=True)
class Plan:
    """What to do next. The status is saved first (intent before act), then the actions run in order."""

    status: Status
    actions: tuple[Action, ...] = ()
    wake_after: float | None = None  # seconds until the planner wants to look again even if nothing changes
