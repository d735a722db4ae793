"""Why pods do not run yet: one word for the status, and the cluster's own words. What will never come right is told."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan import crash_loop, silence
from everstep_operator.plan.conditions import true_condition, with_condition
from everstep_operator.plan.model import Observed, Pod
from everstep_operator.plan.refusal import reason_of

PODS_RUNNING = "PodsRunning"

WAITING_FOR_NODES = "WaitingForNodes"
UNSCHEDULABLE = "Unschedulable"
IMAGE_PULL = "ImagePull"
CONFIG = "Config"
STORAGE = "Storage"
NODE_NOT_READY = "NodeNotReady"

#: An image that is not there and a Secret that is not there stay so. The kubelet has tried three times by then.
CONFIRMED_SECONDS = 30.0
#: A coordinator that cannot live: its image, its limits or its arguments are wrong, on whatever node it is tried.
COORDINATOR_SECONDS = 300.0

_IMAGE_WORDS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
_CONFIG_WORDS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_STORAGE_WORDS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_MISSING = re.compile(
    r"(secret|configmap)s? \"[^\"]*\" not found|non-existent (secret|config) key|couldn't find key", re.I
)
#: What stays as it is until somebody repairs it. Everything else may be the network, a registry or a node that has a
#: bad minute, and is waited for.
_FINAL_WORDS = re.compile(r"\b(InvalidImageName|ErrImageNeverPull|SignatureValidationFailed)\b")
_FINAL_OF_IMAGES = re.compile(
    r"not found|manifest unknown|name unknown|no match for platform|no such host"
    r"|\bunauthorized\b|\bforbidden\b|access denied|\bdenied:|authorization failed",
    re.I,
)
#: Kubelets before 1.32 repeat the registry's words only at each try.
_NO_CAUSE = re.compile(r"ImagePullBackOff(: Back-off pulling image \"[^\"]*\")?$")
_FINAL_OF_CONTAINERS = re.compile(rf"{_MISSING.pattern}|runAsNonRoot|non-numeric user|no command specified", re.I)
_CLAIM = re.compile(r"persistentvolumeclaim|volume node affinity|node\(s\) had volume", re.I)
#: Of several pods, the one whose trouble explains most: what people have to repair comes first.
_ORDER = (
    CONFIG, IMAGE_PULL, crash_loop.COORDINATOR_FAILED, silence.SILENT, silence.REFUSES, NODE_NOT_READY, STORAGE,
    crash_loop.REJECTED, UNSCHEDULABLE, WAITING_FOR_NODES,
)  # fmt: skip


@dataclass(frozen=True)
class Waiting:
    reason: str
    message: str


def of_pod(pod: Pod) -> Waiting | None:
    """Why this pod does not run; None: it does, or did."""
    if pod.finished or (pod.phase == "Running" and pod.machine_lost_since is None):
        return None
    if pod.machine_lost_since is not None:
        since = f"{pod.machine_lost_since:%H:%M:%S} UTC"
        return Waiting(NODE_NOT_READY, f"{pod.name}: its node {pod.machine} has not been Ready since {since}")
    told = pod.message.startswith(pod.waiting_reason)
    words = pod.message if told else ": ".join(filter(None, (pod.waiting_reason, pod.message)))
    return Waiting(_classify(pod.waiting_reason, pod.message), f"{pod.name}: {words}" if words else "")


def _classify(word: str, message: str) -> str:
    if word in _IMAGE_WORDS:
        return IMAGE_PULL
    if word in _CONFIG_WORDS or _MISSING.search(message):
        return CONFIG
    if word in _STORAGE_WORDS or _CLAIM.search(message):
        return STORAGE
    return UNSCHEDULABLE if word in (UNSCHEDULABLE, "SchedulingGated") else WAITING_FOR_NODES


def waiting(status: Status, observed: Observed) -> Waiting:
    """Why not all nodes run."""
    counted = f"{status.nodes.ready} of {status.nodes.desired} nodes run"
    if status.refusal is not None:
        return Waiting(reason_of(status.refusal), f"{counted}; {status.refusal.message}")
    found = [why for pod in observed.pods if not pod.terminating and (why := of_pod(pod)) is not None]
    for type in (crash_loop.COORDINATOR_FAILS, crash_loop.PODS_REJECTED, silence.SILENT):
        if (condition := true_condition(status, type)) is not None:
            found.append(Waiting(condition.reason, condition.message))
    worst = min(
        found,
        key=lambda why: (_ORDER.index(why.reason), not _is_final(why.reason, why.message), not why.message),
        default=None,
    )
    if worst is None or not worst.message:
        return Waiting(WAITING_FOR_NODES if worst is None else worst.reason, counted)
    return Waiting(worst.reason, f"{counted}; {worst.message}")


def note(status: Status, observed: Observed, now: datetime) -> Status:
    """The condition PodsRunning. Its time says since when the reason has been this one, and final, or not."""
    if status.nodes.ready >= status.nodes.desired:
        return with_condition(status, PODS_RUNNING, "True", "AllRun", "", now)
    why, before = waiting(status, observed), status.condition(PODS_RUNNING)
    if before is not None and before.reason == why.reason and _NO_CAUSE.search(why.message):
        return status  # what the registry said last holds until it is asked again
    if before is not None and _is_final(before.reason, before.message) != _is_final(why.reason, why.message):
        others = tuple(condition for condition in status.conditions if condition is not before)
        status = status.model_copy(update={"conditions": others})  # its clock begins anew
    return with_condition(status, PODS_RUNNING, "False", why.reason, why.message, now)


def hopeless(status: Status, now: datetime) -> Waiting | None:
    """What keeps a run from ever beginning, once that is certain.

    A run that has begun waits, also after a suspension: its image was good.
    """
    verdict = _verdict(status)
    return verdict[1] if verdict is not None and now >= verdict[0] else None


def certain_at(status: Status) -> datetime | None:
    """From when on it is `hopeless`, unless something changes; None: it is not."""
    verdict = _verdict(status)
    return None if verdict is None else verdict[0]


def _verdict(status: Status) -> tuple[datetime, Waiting] | None:
    if has_trained(status):
        return None
    dies, condition = true_condition(status, crash_loop.COORDINATOR_FAILS), status.condition(PODS_RUNNING)
    if dies is not None:
        return dies.last_transition_time + timedelta(seconds=COORDINATOR_SECONDS), Waiting(dies.reason, dies.message)
    if status.phase is not Phase.PENDING or condition is None or condition.status != "False":
        return None
    if not _is_final(condition.reason, condition.message):
        return None
    why = Waiting(condition.reason, condition.message)
    return condition.last_transition_time + timedelta(seconds=CONFIRMED_SECONDS), why


def _is_final(reason: str, message: str) -> bool:
    if reason == IMAGE_PULL:
        return (_FINAL_WORDS.search(message) or _FINAL_OF_IMAGES.search(message)) is not None
    return reason == CONFIG and _FINAL_OF_CONTAINERS.search(message) is not None


def has_trained(status: Status) -> bool:
    """In this life or in one before a suspension."""
    return status.last_checkpoint is not None or (status.progress is not None and status.progress.step > 0)


def startup_deadline(run: TrainingRun, status: Status) -> datetime | None:
    """When the run fails unless it has trained by then; None: it has, or may take as long as it needs."""
    seconds = run.spec.failure_policy.startup.deadline_seconds
    if seconds is None or status.start_time is None or has_trained(status):
        return None
    return status.start_time + timedelta(seconds=seconds)
