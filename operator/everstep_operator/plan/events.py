"""What is worth an Event: read off two statuses, so that each change makes one, and no change none."""

from collections.abc import Iterator

from everstep_operator.api.trainingrun import Attempt, Phase, Status
from everstep_operator.plan import crash_loop, move, silence
from everstep_operator.plan.conditions import CHECKPOINTS_DURABLE, true_condition
from everstep_operator.plan.model import Event
from everstep_operator.plan.refusal import reason_of
from everstep_operator.plan.restart import details
from everstep_operator.plan.waiting import PODS_RUNNING, WAITING_FOR_NODES

#: An Event's message may not be longer.
_LONGEST = 1_024


def changes(old: Status, new: Status) -> tuple[Event, ...]:
    """The events between two statuses of one run, in the order in which people would tell them."""
    return tuple(
        Event(event.type, event.reason, event.message[:_LONGEST] or str(new.phase)) for event in _changes(old, new)
    )


def _changes(old: Status, new: Status) -> Iterator[Event]:
    for attempt in new.attempts:
        if attempt not in old.attempts:
            yield Event("Warning", attempt.reason, _sentence(attempt))
    known = {node.name for node in old.excluded_nodes}
    for node in new.excluded_nodes:
        if node.name not in known:
            yield Event("Warning", "NodeExcluded", f"{node.reason}; no pod is placed on {node.name} until {node.until}")
    if new.refusal is not None and (old.refusal is None or old.refusal.message != new.refusal.message):
        yield Event("Warning", reason_of(new.refusal), f"a pod cannot be created: {new.refusal.message}")
    yield from _conditions(old, new)
    if new.phase != old.phase and new.phase is not None:
        bad = new.phase is Phase.FAILED
        yield Event("Warning" if bad else "Normal", str(new.phase), f"{new.reason}: {new.message}".rstrip(": "))


def _conditions(old: Status, new: Status) -> Iterator[Event]:
    was, now = old.condition(PODS_RUNNING), new.condition(PODS_RUNNING)
    waits = now is not None and now.status == "False" and now.reason != WAITING_FOR_NODES and new.refusal is None
    if now is not None and waits and (was is None or was.reason != now.reason):
        yield Event("Warning", now.reason, now.message)
    for type in (crash_loop.COORDINATOR_FAILS, crash_loop.PODS_REJECTED, silence.SILENT):
        begun = true_condition(new, type)
        if begun is not None and true_condition(old, type) is None:
            yield Event("Warning", begun.reason, begun.message)
    if move.is_moving(new) and not move.is_moving(old):
        yield Event("Normal", move.SCALING, move.MESSAGE)
    was, now = old.condition(CHECKPOINTS_DURABLE), new.condition(CHECKPOINTS_DURABLE)
    if now is not None and now.status == "False" and (was is None or was.status != "False"):
        yield Event("Warning", now.reason, now.message)


def _sentence(attempt: Attempt) -> str:
    return f"{attempt.message} ({details(attempt)})"
