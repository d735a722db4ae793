"""spec.suspend: save at an agreed step, stop, wait. Once begun it is carried through, also if suspend is taken back."""

from datetime import datetime

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan.conditions import with_condition

SUSPENDED = "Suspended"
SUSPENDING = "Suspending"
RESUMED = "Resumed"


def is_suspending(status: Status) -> bool:
    """The stop has been asked for and has not been reached. The condition is the memory of that."""
    condition = status.condition(SUSPENDED)
    return condition is not None and condition.reason == SUSPENDING


def began(status: Status) -> datetime | None:
    condition = status.condition(SUSPENDED)
    return condition.last_transition_time if condition is not None and is_suspending(status) else None


def wants_suspension(run: TrainingRun, status: Status) -> bool:
    return run.spec.suspend or is_suspending(status)


def begin(status: Status, now: datetime) -> Status:
    if is_suspending(status):
        return status
    return with_condition(status, SUSPENDED, "False", SUSPENDING, "saving at an agreed step", now)


def reach(status: Status, now: datetime) -> Status:
    """All have saved, or there was nothing to save."""
    message = "all pods are stopped; set suspend to false to go on"
    status = with_condition(status, SUSPENDED, "True", SUSPENDED, message, now)
    update = {"phase": Phase.SUSPENDED, "reason": SUSPENDED, "message": message, "world_size": 0, "refusal": None}
    return status.model_copy(update=update)


def resume(status: Status, now: datetime) -> Status:
    """Start again: new pods, a new clock for the deadline. The coordinator goes on from the next generation."""
    status = with_condition(status, SUSPENDED, "False", RESUMED, "", now)
    update = {
        "phase": Phase.PENDING,
        "reason": RESUMED,
        "message": "waiting for the pods",
        "start_time": now,
        "attempt": status.attempt + 1,
    }
    return status.model_copy(update=update)
