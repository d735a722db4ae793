"""What a failure means: its root cause among the reports of all nodes, and whether another try makes sense."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from everstep_protocol.backoff import delay
from everstep_protocol.messages import Intent
from everstep_protocol.reasons import Failure, Reason

#: As many failures that look the same, with no progress between them, are a bug that no restart cures.
SAME_FAILURE = 3
#: What code raises. Before anything was trained it would mostly raise it again, and its author is looking on.
_RAISED = (Reason.USER_EXCEPTION, Reason.DATA)


@dataclass(frozen=True)
class Record:
    """The history of failures, as far as decisions need it. Part of the memory."""

    restarts: int = 0  # failed generations that were followed by another try, those before this coordinator included
    by_reason: dict[str, int] = field(default_factory=dict)  # of those seen by a coordinator that we know of
    furthest: int = 0  # the last step that any failed generation had entered
    durable: int = 0  # step of the newest checkpoint at the last failure
    in_a_row: int = 0  # failures since the last progress
    identical: int = 0  # those of them at the end that look the same
    fingerprint: str = ""


def root_cause(reports: Iterable[tuple[float, Failure]]) -> Failure:
    """The failure that explains the others, of (time it was heard, failure).

    Communication errors are the echo of another rank's death, and a status nobody can explain is worth less than a
    cause with a name; among the rest the earliest wins.
    """
    echo = {Reason.UNKNOWN: 1, Reason.COMMUNICATION: 2}
    return min(reports, key=lambda report: (echo.get(report[1].reason, 0), report[0]))[1]


def after(record: Record, failure: Failure, step: int, durable: int) -> Record:
    """The record with one more failure, of a generation that came to `step` and left a checkpoint of step `durable`."""
    progress = step > record.furthest or durable > record.durable
    same = failure.fingerprint == record.fingerprint
    return replace(
        record,
        furthest=max(record.furthest, step),
        durable=max(record.durable, durable),
        in_a_row=1 if progress else record.in_a_row + 1,
        identical=record.identical + 1 if same and not progress else 1,
        fingerprint=failure.fingerprint,
    )


def why_give_up(record: Record, failure: Failure, step: int, intent: Intent) -> str | None:
    """The sentence that ends the run, or None if another try makes sense. `record` includes the failure."""
    if not failure.reason.retryable:
        return f"gave up: no restart can help: {describe(failure)}"
    if not intent.retry_start and failure.reason in _RAISED and record.furthest <= 1 and not record.durable:
        return f"gave up before the first step was done (--max-restarts N would try again): {describe(failure)}"
    # Nodes that vanish are no bug of the script, however often it happens; the budget bounds them.
    if record.identical >= SAME_FAILURE and failure.reason is not Reason.NODE_LOST:
        return f"gave up after {record.identical} identical failures at step {step}: {describe(failure)}"
    if record.restarts >= intent.max_restarts:
        spent = f"all {intent.max_restarts} restarts are spent" if intent.max_restarts else "no restarts are allowed"
        return f"gave up: {spent}: {describe(failure)}"
    return None


def count(record: Record, failure: Failure) -> Record:
    """The record with one more restart spent, because of `failure`."""
    by_reason = {**record.by_reason, failure.reason: record.by_reason.get(failure.reason, 0) + 1}
    return replace(record, restarts=record.restarts + 1, by_reason=by_reason)


def pause(record: Record, intent: Intent) -> float:
    """Seconds before the next try."""
    return delay(intent.backoff, record.in_a_row, intent.run_uid)


def describe(failure: Failure) -> str:
    place = f" ({failure.where})" if failure.where else ""
    return f"{failure.reason}: {failure.message}{place}"
