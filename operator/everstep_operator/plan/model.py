"""The values that the planner reads and returns. Nothing here touches a cluster."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

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
    excluded_nodes: tuple[str, ...] = ()  # machines that it must be kept away from: status.excludedNodes


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
    sidecars_run: bool = False  # its main container has ended, and others have not
    last_lines: tuple[str, ...] = ()  # the end of its log, where it left no last words and the cluster tells
    # Why it waits, as one word of the cluster: the reason of its PodScheduled condition (Unschedulable), else that of
    # the first container that waits (ErrImagePull, CreateContainerConfigError), else its latest event's (FailedMount).
    waiting_reason: str = ""
    # When it should be gone, if it is terminating: metadata.deletionTimestamp, in which the grace is counted already.
    gone_by: datetime | None = None
    machine: str = ""  # name of the Node that it is bound to; "": not yet
    created: datetime | None = None  # None: not told
    started: datetime | None = None  # since when its main container has run; None: it does not, or nobody tells
    kept_from: tuple[str, ...] = ()  # Nodes that it was created to stay away from
    # Since when that Node's Ready condition has not been True; None: it is ready, or nobody may look (namespaced mode).
    # A Node that does not exist: since that was first known.
    machine_lost_since: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Silence:
    """A coordinator runs, and gave no report when it was asked."""

    why: str
    refuses: bool = False  # it answers, but with something else


@dataclass(frozen=True)
class Observed:
    """All that is known of a run's surroundings at one moment."""

    pods: tuple[Pod, ...] = ()  # only those with the run's uid
    report: Report | None = None  # the coordinator's; None while it does not answer
    silence: Silence | None = None  # why there is none, if a coordinator runs


@dataclass(frozen=True)
class CreatePod:
    spec: PodSpec


@dataclass(frozen=True)
class DeletePod:
    name: str
    uid: str  # a precondition: never another pod of that name
    # None: as long as the run gives its pods. 0: forget it at once, whether its node confirms that or not.
    grace_seconds: float | None = None


@dataclass(frozen=True)
class SendIntent:
    """Tell the coordinator the operator's wish. Idempotent."""

    intent: Intent


@dataclass(frozen=True)
class DeleteRun:
    """Delete the TrainingRun itself: its time to live is over. The pods that were kept go with it."""

    uid: str  # a precondition: never another run of that name


Action = CreatePod | DeletePod | SendIntent | DeleteRun


@dataclass(frozen=True)
class Event:
    """Something happened to the run that people want to find in `kubectl describe`. Only changes make events."""

    type: Literal["Normal", "Warning"]
    reason: str  # one CamelCase word
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do next. The status is saved first (intent before act), then the actions run in order."""

    status: Status
    actions: tuple[Action, ...] = ()
    wake_after: float | None = None  # seconds until something is due; None: nothing is
    poll: bool = False  # look again now and then as well: what is waited for may come about without an event
    events: tuple[Event, ...] = ()  # to be posted once the status is saved
