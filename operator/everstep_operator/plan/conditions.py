"""Conditions as metav1 has them, but for the time of the last change, which moves with the reason as well."""

from datetime import datetime
from typing import Literal

from everstep_operator.api.trainingrun import Condition, Status

COMPLETE = "Complete"
FAILED = "Failed"
PROGRESS_REPORTED = "ProgressReported"
CHECKPOINTS_DURABLE = "CheckpointsDurable"


def true_condition(status: Status, type: str) -> Condition | None:
    """The condition, if it is True."""
    condition = status.condition(type)
    return condition if condition is not None and condition.status == "True" else None


def with_condition(
    status: Status, type: str, value: Literal["True", "False", "Unknown"], reason: str, message: str, now: datetime
) -> Status:
    old = status.condition(type)
    # A new reason starts a new clock, too: Suspending is no longer Resumed.
    unchanged = old is not None and (old.status, old.reason) == (value, reason)
    new = Condition(
        type=type,
        status=value,
        reason=reason,
        message=message,
        last_transition_time=old.last_transition_time if old is not None and unchanged else now,
        observed_generation=status.observed_generation,
    )
    if old == new:
        return status
    others = [condition for condition in status.conditions if condition.type != type]
    return status.model_copy(update={"conditions": tuple(sorted([*others, new], key=lambda c: c.type))})
