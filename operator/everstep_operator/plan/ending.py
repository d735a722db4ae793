"""When a run is over: Succeeded or Failed, and what then happens to its pods."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan.conditions import COMPLETE, FAILED, PROGRESS_REPORTED, with_condition
from everstep_operator.plan.model import Action, Observed
from everstep_operator.plan.pods import delete_all, workers
from everstep_operator.plan.restart import Counted
from everstep_protocol.messages import RunState
from everstep_protocol.reasons import Reason

#: Launchers that have been told that the run is over print, leave last words and exit; they are not hurried.
LEAVE_SECONDS = 10.0

MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded"
DEADLINE_EXCEEDED = "DeadlineExceeded"


_HOPELESS = frozenset(str(reason) for reason in Reason if not reason.retryable)


@dataclass(frozen=True)
class Ending:
    phase: Phase
    reason: str
    message: str


def ending(run: TrainingRun, counted: Counted, observed: Observed) -> Ending | None:
    """Whether the run has come to its end by itself."""
    report, pods = observed.report, workers(observed)
    if report is not None and report.state is RunState.SUCCEEDED:
        return Ending(Phase.SUCCEEDED, "Completed", report.message or "every rank exited 0")
    if report is not None and report.state is RunState.FAILED:
        reason = str(report.failures[-1].reason) if report.failures else "Failed"
        return Ending(Phase.FAILED, reason, report.message or "the coordinator gave up")
    succeeded = {pod.node for pod in pods if pod.phase == "Succeeded"}
    if succeeded >= set(range(run.spec.num_nodes)) and all(pod.phase == "Succeeded" for pod in pods):
        return Ending(Phase.SUCCEEDED, "Completed", "every rank exited 0")
    hopeless = [attempt for attempt in counted.new if attempt.reason in _HOPELESS]
    if hopeless:
        return Ending(Phase.FAILED, hopeless[0].reason, f"{hopeless[0].message} (no restart can help)")
    if counted.over_budget:
        last, limit = counted.new[-1], run.spec.failure_policy.max_restarts
        message = f"failurePolicy.maxRestarts {limit} are used up; the last failure: {last.reason}: {last.message}"
        return Ending(Phase.FAILED, MAX_RESTARTS_EXCEEDED, message)
    return None


def end(status: Status, how: Ending, now: datetime) -> Status:
    """The status of a run that is over."""
    condition = COMPLETE if how.phase is Phase.SUCCEEDED else FAILED
    status = with_condition(status, condition, "True", how.reason, how.message[:8_192], now)
    if status.condition(PROGRESS_REPORTED) is None:
        message = "the command ended without having reported a single step: did it call Trainer.fit?"
        status = with_condition(status, PROGRESS_REPORTED, "False", "NothingReported", message, now)
    update = {
        "phase": how.phase,
        "reason": how.reason,
        "message": how.message[:8_192],
        "completion_time": now,
    }
    return status.model_copy(update=update)


def clean_up(status: Status, observed: Observed, now: datetime) -> tuple[list[Action], float | None]:
    """Delete what is left of a run that is over; seconds until the next look if something is."""
    if not observed.pods:
        return [], None
    told = observed.report is not None and observed.report.state in (RunState.SUCCEEDED, RunState.FAILED)
    if told and status.completion_time is not None and not all(pod.finished for pod in workers(observed)):
        patience = status.completion_time + timedelta(seconds=LEAVE_SECONDS) - now
        if patience > timedelta(0):
            return [], patience.total_seconds()
    return list(delete_all(observed)), LEAVE_SECONDS
