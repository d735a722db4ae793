"""Pods that end as soon as they are there: a coordinator that cannot live, a pod that its node turns away.

They say nothing of the training and are not counted as restarts. So that they do not come and go for ever in a hurry,
a replacement waits as long as this has been going on already. A condition is the memory of that, and holds what they
said last.
"""

from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Status
from everstep_operator.plan.conditions import true_condition, with_condition
from everstep_operator.plan.model import Observed, Pod
from everstep_operator.plan.pods import died
from everstep_protocol import labels

#: Conditions that are True while it goes on, and their reasons.
COORDINATOR_FAILS, COORDINATOR_FAILED = "CoordinatorFails", "CoordinatorFailed"
PODS_REJECTED, REJECTED = "PodsRejected", "Rejected"
_REASONS = {COORDINATOR_FAILS: COORDINATOR_FAILED, PODS_REJECTED: REJECTED}

#: From one pod to the next. Who has lived for the longest of these has not ended early.
_SHORTEST, _LONGEST = timedelta(seconds=2), timedelta(seconds=60)
_LAST_LINES = 3


def note(status: Status, observed: Observed, now: datetime) -> Status:
    """The conditions, from pods that have ended early; False once their successors have lived long enough."""
    for type, reason in _REASONS.items():
        early = [pod for pod in observed.pods if _type(pod) == type and _ended_early(pod, now)]
        if early:
            status = with_condition(status, type, "True", reason, _last_words(early[-1]), now)
        elif true_condition(status, type) is not None and _lives(type, observed, now):
            status = with_condition(status, type, "False", "Lives", "", now)
    return status


def forget(status: Status, now: datetime) -> Status:
    """Before a new life of the run."""
    for type in _REASONS:
        if true_condition(status, type) is not None:
            status = with_condition(status, type, "False", "Lives", "", now)
    return status


def replace_at(status: Status, there: list[Pod]) -> datetime | None:
    """When the place of these pods, the newest last, may be taken by another one; None: at once."""
    if not there or not _ended(there[-1]):
        return None
    newest, condition = there[-1], true_condition(status, _type(there[-1]))
    if condition is None or newest.created is None:
        return None
    so_far = newest.created - condition.last_transition_time
    return newest.created + min(max(so_far, _SHORTEST), _LONGEST)


def _type(pod: Pod) -> str:
    return COORDINATOR_FAILS if pod.role == labels.COORDINATOR else PODS_REJECTED


def _ended(pod: Pod) -> bool:
    """And is nobody's failure, which would be counted."""
    return pod.phase == "Failed" and (pod.disrupted or (pod.role == labels.COORDINATOR and died(pod)))


def _ended_early(pod: Pod, now: datetime) -> bool:
    return _ended(pod) and pod.created is not None and now < pod.created + _LONGEST


def _lives(type: str, observed: Observed, now: datetime) -> bool:
    """Those that are there have not ended early, whatever becomes of them."""
    there = [pod for pod in observed.pods if _type(pod) == type]
    young = [pod for pod in there if pod.created is not None and now < pod.created + _LONGEST]
    return bool(there) and not young and all(pod.phase != "Failed" for pod in there)


def _last_words(pod: Pod) -> str:
    how = "" if pod.exit_code is None else f" exited with {pod.exit_code}"
    words = pod.failure.message if pod.failure is not None else pod.message
    said = "; ".join(pod.last_lines[-_LAST_LINES:])
    return ": ".join(filter(None, (f"{pod.name}{how}", words, said)))
