"""What a person in front of a run wants to be told when its status has changed: sentences. Pure."""

from datetime import datetime

from everstep_operator.api.trainingrun import Attempt, Phase, Status, TrainingRun
from everstep_operator.plan.conditions import CHECKPOINTS_DURABLE
from everstep_operator.plan.restart import DISRUPTED


def news(before: TrainingRun, after: TrainingRun) -> list[str]:
    """One sentence for each thing worth telling, in the order in which they happened."""
    old, new = before.status, after.status
    told = [f"{_who(attempt)}: {_what(attempt)}" for attempt in _added(old, new)]
    if new.restarts.total > old.restarts.total and new.phase is not Phase.FAILED:
        limit = after.spec.failure_policy.max_restarts
        told.append(f"restarting: {new.restarts.total} of at most {limit} restarts")
    elif new.phase is Phase.RESTARTING and old.phase is not Phase.RESTARTING and new.reason == DISRUPTED:
        told.append(f"restarting, not counted: {new.message}" if new.message else "restarting, not counted")
    if new.resumed_from is not None and new.resumed_from != old.resumed_from:
        if new.resumed_from.note:
            told.append(f"about the checkpoints: {new.resumed_from.note}")
        told.append(f"resumed from step {new.resumed_from.step} ({new.resumed_from.uri})")
    if new.not_durable_since is not None and old.not_durable_since is None:
        condition = new.condition(CHECKPOINTS_DURABLE)
        why = f": {condition.message}" if condition is not None and condition.message else ""
        told.append(f"checkpoints fail since {_clock(new.not_durable_since)}{why}; training goes on, {_at_risk(new)}")
    if new.not_durable_since is None and old.not_durable_since is not None and new.last_checkpoint is not None:
        told.append(f"checkpoints work again: step {new.last_checkpoint.step} is saved")
    return told


def summary(run: TrainingRun) -> str:
    """How a run stands or ended, in a line."""
    status = run.status
    parts = []
    if status.progress is not None:
        parts.append(_count(status.progress.step, "step"))
    parts.append(_count(status.restarts.total, "restart"))
    if status.goodput is not None:
        parts.append(f"goodput {status.goodput.ratio:.0%}")
    parts.append(checkpoint(status))
    if status.start_time is not None and status.completion_time is not None:
        parts.append(f"{(status.completion_time - status.start_time).total_seconds():.0f} s")
    return ", ".join(parts)


def checkpoint(status: Status) -> str:
    saved = status.last_checkpoint
    return "no checkpoint" if saved is None else f"last checkpoint step {saved.step} at {saved.uri}"


def _added(old: Status, new: Status) -> list[Attempt]:
    return [attempt for attempt in new.attempts if attempt not in old.attempts]


def _who(attempt: Attempt) -> str:
    where = f" on node {attempt.node}" if attempt.node is not None else ""
    who = f"rank {attempt.rank}" if attempt.rank is not None else "a pod"
    return f"{who}{where} failed at step {attempt.step}" if attempt.step else f"{who}{where} failed"


def _what(attempt: Attempt) -> str:
    return f"{attempt.reason}: {attempt.message}" if attempt.message else attempt.reason


def _at_risk(status: Status) -> str:
    saved = status.last_checkpoint
    return "nothing is saved yet" if saved is None else f"a failure now would lose the work since step {saved.step}"


def _clock(time: datetime) -> str:
    return time.astimezone().strftime("%H:%M:%S")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
