"""When a run is over: Succeeded or Failed, and what then happens to its pods and to the object itself."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan import waiting
from everstep_operator.plan.conditions import COMPLETE, FAILED, PROGRESS_REPORTED, with_condition
from everstep_operator.plan.model import Action, DeleteRun, Observed, Pod
from everstep_operator.plan.pods import by_place, delete, workers
from everstep_operator.plan.restart import Counted, details
from everstep_protocol.messages import RunState
from everstep_protocol.reasons import Reason

#: Launchers that have been told that the run is over print, leave last words and exit; they are not hurried.
LEAVE_SECONDS = 10.0

MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded"
DEADLINE_EXCEEDED = "DeadlineExceeded"
STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"


_HOPELESS = frozenset(str(reason) for reason in Reason if not reason.retryable)


@dataclass(frozen=True)
class Ending:
    phase: Phase
    reason: str
    message: str


def ending(run: TrainingRun, counted: Counted, observed: Observed, now: datetime) -> Ending | None:
    """Whether the run has come to its end by itself."""
    report, status = observed.report, counted.status
    if report is not None and report.state is RunState.SUCCEEDED:
        return Ending(Phase.SUCCEEDED, "Completed", report.message or "every rank exited 0")
    if report is not None and report.state is RunState.FAILED:
        reason = str(report.failures[-1].reason) if report.failures else "Failed"
        where = f" ({details(status.attempts[-1])})" if report.failures and status.attempts else ""
        return Ending(Phase.FAILED, reason, f"{report.message or 'the coordinator gave up'}{where}")
    if _is_done(run, observed):
        return Ending(Phase.SUCCEEDED, "Completed", "every rank exited 0")
    hopeless = [attempt for attempt in counted.new if attempt.reason in _HOPELESS]
    if hopeless:
        first = hopeless[0]
        return Ending(Phase.FAILED, first.reason, f"{first.message} ({details(first)}; no restart can help)")
    if counted.over_budget:
        last, limit = counted.new[-1], run.spec.failure_policy.max_restarts
        used_up = f"failurePolicy.maxRestarts {limit} are used up"
        message = f"{used_up}; the last failure: {last.reason}: {last.message} ({details(last)})"
        return Ending(Phase.FAILED, MAX_RESTARTS_EXCEEDED, message)
    return _never_begins(run, status, observed, now)


def _is_done(run: TrainingRun, observed: Observed) -> bool:
    """Enough nodes are done, and none has failed: what else there is came too late to take part.

    A launcher exits 0 when the coordinator has told it that all who trained have. Of each node the newest pod counts:
    an older one that a dead node never lets go has no say.
    """
    places = by_place(observed)
    newest = [places[node][-1].phase for node in range(run.spec.num_nodes) if node in places]
    return "Failed" not in newest and newest.count("Succeeded") >= run.spec.min_nodes


def _never_begins(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Ending | None:
    """It has not trained yet, and will not, or not in time."""
    if (wrong := waiting.hopeless(status, now)) is not None:
        return Ending(Phase.FAILED, wrong.reason, f"{wrong.message} (this does not mend itself)")
    limit = waiting.startup_deadline(run, status)
    if limit is not None and now >= limit:
        seconds = run.spec.failure_policy.startup.deadline_seconds
        why = waiting.waiting(status, observed)
        message = (
            f"no training step within failurePolicy.startup.deadlineSeconds {seconds}: {why.reason}: {why.message}"
        )
        return Ending(Phase.FAILED, STARTUP_DEADLINE_EXCEEDED, message)
    return None


def end(status: Status, how: Ending, now: datetime) -> Status:
    """The status of a run that is over."""
    succeeded, told = how.phase is Phase.SUCCEEDED, how.message
    if status.condition(PROGRESS_REPORTED) is None:
        silent = "the command ended without having reported a single step: did it call Trainer.fit?"
        status = with_condition(status, PROGRESS_REPORTED, "False", "NothingReported", silent, now)
        told = f"{told}; {silent}" if succeeded else told  # a failure says more
    told = told[:8_192]
    status = with_condition(status, COMPLETE if succeeded else FAILED, "True", how.reason, told, now)
    update = {
        "phase": how.phase,
        "reason": how.reason,
        "message": told,
        "completion_time": now,
        "refusal": None,
    }
    return status.model_copy(update=update)


def clean_up(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> tuple[list[Action], float | None]:
    """What is left to do for a run that is over; seconds until the next look if there will be something then."""
    left = _time_to_live(run, status, now)
    if left is not None and left <= 0:
        return [DeleteRun(run.metadata.uid)], None
    unwanted = _unwanted(run, observed)
    wake_after = left
    if unwanted:
        patience = _patience(status, observed, now)
        wake_after = min(patience or LEAVE_SECONDS, LEAVE_SECONDS if left is None else left)
        if patience > 0:
            return [], wake_after
    return [delete(pod) for pod in unwanted if not pod.terminating], wake_after


def _unwanted(run: TrainingRun, observed: Observed) -> list[Pod]:
    """By spec.cleanPodPolicy."""
    match run.spec.clean_pod_policy:
        case "None":
            return []
        case "Running":
            return [pod for pod in observed.pods if not pod.finished or pod.sidecars_run]
        case _:
            return list(observed.pods)


def _patience(status: Status, observed: Observed, now: datetime) -> float:
    """Seconds that the launchers are still given to leave by themselves."""
    # A success was told to all of them, also when the coordinator does not answer this time: its pods' logs are kept.
    told = status.phase is Phase.SUCCEEDED or (observed.report is not None and observed.report.state is RunState.FAILED)
    if not told or status.completion_time is None or all(pod.finished for pod in workers(observed)):
        return 0.0
    return max(0.0, (status.completion_time + timedelta(seconds=LEAVE_SECONDS) - now).total_seconds())


def _time_to_live(run: TrainingRun, status: Status, now: datetime) -> float | None:
    """Seconds until the object itself is deleted; None: it is kept."""
    ttl = run.spec.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return (status.completion_time + timedelta(seconds=ttl) - now).total_seconds()
