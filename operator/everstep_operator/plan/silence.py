"""A coordinator that runs and is not heard: it is told of after a minute, and replaced later, less and less often.

Training goes on without it, but nobody learns of progress, agrees on a step or gives up a dead node. A condition is the
memory: Unknown since it was not heard for the first time, True once that has lasted.
"""

from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Phase, Status
from everstep_operator.plan.conditions import true_condition, with_condition
from everstep_operator.plan.model import Observed, Pod
from everstep_protocol import labels

#: The condition, and the reason of one that does not answer.
SILENT = "CoordinatorSilent"
#: The reason of one that answers with something else than a report. A new one would do so, too.
REFUSES = "CoordinatorRefuses"

#: A container that runs does not listen yet.
_BEGINS = timedelta(seconds=15)
_PATIENCE = timedelta(seconds=45)
#: From one pod to the next. Where nobody may look at Nodes, the first wait is all that tells of a dead node that holds
#: the coordinator, and the launchers elsewhere give up after 300 s without one.
_SHORTEST, _LONGEST = timedelta(minutes=1), timedelta(hours=1)


def note(status: Status, observed: Observed, now: datetime) -> Status:
    before = status.condition(SILENT)
    if observed.report is not None:
        return forget(status, now)
    pod = next((pod for pod in reversed(observed.pods) if _is_coordinator(pod)), None)
    if observed.silence is None or pod is None or (pod.created is not None and now < pod.created + _BEGINS):
        return status
    if before is None or before.status == "False":
        return with_condition(status, SILENT, "Unknown", "NotHeard", "", now)
    if before.status == "Unknown" and now < before.last_transition_time + _PATIENCE:
        return status
    reason = REFUSES if observed.silence.refuses else SILENT
    return with_condition(status, SILENT, "True", reason, f"{pod.name} runs: {observed.silence.why}", now)


def forget(status: Status, now: datetime) -> Status:
    """It was heard, or a new life of the run begins."""
    before = status.condition(SILENT)
    if before is None or before.status == "False":
        return status
    return with_condition(status, SILENT, "False", "Heard", "", now)


def is_given_up(status: Status, observed: Observed, pod: Pod, now: datetime) -> bool:
    """This pod is to make place for another one, which may be heard."""
    condition = true_condition(status, SILENT)
    rests = status.phase is None or status.phase.over or status.phase is Phase.SUSPENDED
    if rests or observed.silence is None or observed.silence.refuses or not _is_coordinator(pod):
        return False
    if condition is None or condition.reason != SILENT:
        return False
    since = condition.last_transition_time
    begun = max(since, pod.created or since)
    return now >= begun + min(max(begun - since, _SHORTEST), _LONGEST)


def _is_coordinator(pod: Pod) -> bool:
    return pod.role == labels.COORDINATOR and pod.phase == "Running" and not pod.terminating
