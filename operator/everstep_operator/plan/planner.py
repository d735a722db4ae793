"""make_plan: what to do next for one run. Pure: the same run, surroundings and time give the same plan."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan import crash_loop, deadline, ending, move, pods, refusal, silence, suspend, waiting
from everstep_operator.plan.ending import Ending
from everstep_operator.plan.events import changes
from everstep_operator.plan.intent import changed_intent, first_intent, interrupted
from everstep_operator.plan.lost import excluded_nodes, look_for_losses
from everstep_operator.plan.model import Action, CreatePod, Observed, Plan, Pod, SendIntent
from everstep_operator.plan.phase import next_phase
from everstep_operator.plan.restart import DISRUPTED, RANK_FAILED, Counted, count_failures, details, replace_after
from everstep_operator.plan.status import learn
from everstep_protocol.messages import RunState, StopCause

_STOPPING = {
    StopCause.SUSPEND: (suspend.SUSPENDING, "saving at an agreed step, then stopping"),
    StopCause.DEADLINE: (ending.DEADLINE_EXCEEDED, "saving at an agreed step, then stopping"),
    StopCause.SCALE: (move.SCALING, move.MESSAGE),
}
#: To come to the agreed step: an evaluation may be under way. The save has the pods' grace after that, and a stop that
#: is not reached by then is ended by deleting the pods, which gives them their grace once more.
AGREE_SECONDS = 300.0


def make_plan(run: TrainingRun, observed: Observed, now: datetime) -> Plan:
    """Decide on the next actions and the status that goes before them.

    Args:
        run: the object with the status that was saved last.
        observed: what `observe` says of its pods and its coordinator.
        now: with a time zone.
    """
    if not run.spec.managed_by_us:
        return Plan(run.status)
    status = refusal.forget_if_filled(run, learn(run, observed, now), observed)
    losses = look_for_losses(run, status, observed, now)
    plan = _decide(run, losses.status, losses.observed, now)
    plan = refusal.hold_back(run, replace(plan, actions=(*losses.actions, *plan.actions)), now)
    return replace(
        plan,
        wake_after=min((w for w in (plan.wake_after, losses.wake_after) if w is not None), default=None),
        events=changes(run.status, plan.status),
    )


def _decide(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Plan:
    if status.phase is not None and status.phase.over:
        return _over(run, status, observed, now)

    if status.phase is Phase.SUSPENDED:
        if run.spec.suspend or observed.pods:  # those of the time before go first
            return _suspended(run, status, observed)
        return _keep_up(run, _forget_troubles(suspend.resume(status, now), now), observed, now)

    status = silence.note(crash_loop.note(status, observed, now), observed, now)
    status = move.begin_if_wanted(run, status, observed, now)
    stop = _wanted_stop(run, status, now)
    held = interrupted(observed.report)
    told_to_stop = stop is not None or held or _is(observed, RunState.STOPPED)
    counted = count_failures(run, status, observed, now, pods_too=not told_to_stop)
    status = counted.status

    how = ending.ending(run, counted, observed, now) if status.phase is not None else None
    if how is not None:
        return _over(run, ending.end(move.settle(status, now), how, now), observed, now)
    if held:
        message = "interrupted: saving at an agreed step; the same command resumes"
        return Plan(_say(status, "Interrupted", message), poll=True)  # it is not Restarting; the phase stays
    if stop is not None:
        return _stop(run, status, observed, now, stop, counted)
    status = _moved(run, _started(status, now), counted, observed, now)
    if _is(observed, RunState.STOPPED):
        return _leave_behind(status, observed)
    return _keep_up(run, status, observed, now)


# --- the ways a plan can go -----------------------------------------------------------------------------------------


def _over(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Plan:
    actions, wake_after = ending.clean_up(run, status, observed, now)
    return Plan(status, tuple(actions), wake_after)


def _stop(
    run: TrainingRun, status: Status, observed: Observed, now: datetime, cause: StopCause, counted: Counted
) -> Plan:
    """Ask for the agreed step, wait until all have saved, then take the pods away."""
    if cause is StopCause.SUSPEND:
        status = suspend.begin(status, now)
        began = suspend.began(status)
    else:
        began = deadline.deadline(run, status) if cause is StopCause.DEADLINE else move.began(status)
    saved = _is(observed, RunState.STOPPED) or not pods.running_workers(observed)
    late = None if began is None else began + timedelta(seconds=AGREE_SECONDS + pods.grace_seconds(run))
    too_late = late is not None and now >= late
    if saved or too_late:
        if cause is StopCause.DEADLINE:
            message = f"activeDeadlineSeconds {run.spec.active_deadline_seconds} are over; {_where_saved(status)}"
            how = Ending(Phase.FAILED, ending.DEADLINE_EXCEEDED, message)
            return _over(run, ending.end(move.settle(status, now), how, now), observed, now)
        if cause is StopCause.SUSPEND:
            return _suspended(run, suspend.reach(move.settle(status, now), now), observed)
        status = _moved(run, status, counted, observed, now, left=True)
        status = move.settle(status, now)
        nobody_left = not too_late and not _is(observed, RunState.STOPPED)  # who could save, or has been told to leave
        return _keep_up(run, status, observed, now) if nobody_left else _leave_behind(status, observed)
    status = _say(status, *_STOPPING[cause])
    if status.phase is Phase.RUNNING and status.nodes.ready < run.spec.min_nodes:
        status = status.model_copy(update={"phase": Phase.RESTARTING})  # a pod was lost meanwhile
    # Without a coordinator nobody could agree on a step.
    place = _fill(run, status, observed, None, pods.by_place(observed).get(None, []), cause, now)
    status = place.status
    actions = [*place.actions, *_tell(run, status, observed, cause)]
    return Plan(status, tuple(actions), None if late is None else (late - now).total_seconds(), poll=True)


def _suspended(run: TrainingRun, status: Status, observed: Observed) -> Plan:
    """Nothing runs, and nothing should."""
    if observed.pods:
        return Plan(status, tuple(pods.delete_all(observed)), poll=True)
    # If suspend was taken back meanwhile, the next look starts the run again, and should come at once.
    return Plan(status, (), None if run.spec.suspend else 0.0)


def _leave_behind(status: Status, observed: Observed) -> Plan:
    """The run has saved and stopped although it should train: a pod had to go. All start again, uncounted."""
    fresh = max(status.attempt, pods.newest_attempt(observed) + 1)
    status = status.model_copy(update={"attempt": fresh})
    return Plan(status, tuple(pods.delete_all(observed)), poll=True)


def _keep_up(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Plan:
    """A coordinator and one worker per node."""
    actions: list[Action] = []
    due = [deadline.deadline(run, status), waiting.startup_deadline(run, status), waiting.certain_at(status)]
    earliest = replace_after(run, status)
    stale = [pod for pod in pods.workers(observed) if (pod.node or 0) >= run.spec.num_nodes and not pod.terminating]
    actions += [pods.delete(pod) for pod in stale]
    places = pods.by_place(observed)
    for node in (None, *range(run.spec.num_nodes)):
        there = places.get(node, [])
        if earliest is not None and now < earliest and node is not None and any(map(pods.died, there)):
            due.append(earliest)
            continue
        place = _fill(run, status, observed, node, there, None, now)
        status = place.status
        due.append(place.due)
        actions += place.actions
    actions += _tell(run, status, observed, None)
    seconds = ((time - now).total_seconds() for time in due if time is not None)
    return Plan(status, tuple(actions), min((max(0.0, s) for s in seconds), default=None), poll=True)


# --- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    status: Status
    actions: tuple[Action, ...] = ()
    due: datetime | None = None  # not before then


def _fill(
    run: TrainingRun,
    status: Status,
    observed: Observed,
    node: int | None,
    there: list[Pod],
    stop: StopCause | None,
    now: datetime,
) -> _Place:
    """See that one pod holds the place of a node, or of the coordinator (None). `there`: those that do, newest last."""
    going = [pod for pod in there if pod.terminating and not pod.finished]
    alive = [pod for pod in there if not pod.terminating and not pod.finished]
    if alive:
        older = [pods.delete(pod) for pod in there if pod is not alive[-1] and not pod.terminating]
        return _Place(status, tuple(older))
    if going:
        return _Place(status)  # two of them at once would be two processes of one rank
    if node is not None and there and there[-1].phase == "Succeeded" and not _must_repeat(observed):
        return _Place(status)  # done; waits for the others
    if (due := crash_loop.replace_at(status, there)) is not None and now < due:
        return _Place(status, due=due)
    attempt = max(status.attempt, *(pod.attempt + 1 for pod in there), 1)
    status = status.model_copy(update={"attempt": attempt})
    if node is None:
        spec = pods.coordinator(run, attempt, first_intent(run, status, stop), excluded_nodes(status))
    else:
        spec = pods.worker(run, node, attempt, excluded_nodes(status))
    gone = [pods.delete(pod) for pod in there if not pod.terminating]
    return _Place(status, (*gone, CreatePod(spec)))


def _must_repeat(observed: Observed) -> bool:
    """Some nodes are done and another is not and ended: it cannot finish alone, so all do the end again."""
    return any(pod.phase == "Failed" for pod in pods.workers(observed))


def _tell(run: TrainingRun, status: Status, observed: Observed, stop: StopCause | None) -> list[Action]:
    if observed.report is None:
        return []
    intent = changed_intent(run, status, observed.report, stop)
    return [] if intent is None else [SendIntent(intent)]


def _wanted_stop(run: TrainingRun, status: Status, now: datetime) -> StopCause | None:
    if deadline.is_past(run, status, now):
        return StopCause.DEADLINE
    if suspend.wants_suspension(run, status):
        return StopCause.SUSPEND
    return StopCause.SCALE if move.is_moving(status) else None


def _started(status: Status, now: datetime) -> Status:
    return status if status.start_time is not None else status.model_copy(update={"start_time": now})


def _moved(
    run: TrainingRun, status: Status, counted: Counted, observed: Observed, now: datetime, *, left: bool = False
) -> Status:
    """The phase, and why. `left`: all had to leave, whatever the coordinator says."""
    report = observed.report
    phase = next_phase(
        status,
        report,
        min_nodes=run.spec.min_nodes,
        failed_now=bool(counted.new) or left,
        seen_generation=run.status.generation,
    )
    told = report.message if report is not None else ""
    before = status.phase
    status = waiting.note(status.model_copy(update={"phase": phase}), observed, now)
    missing = status.nodes.ready < status.nodes.desired
    why = waiting.waiting(status, observed)
    if phase is Phase.PENDING:
        return _say(status, why.reason, why.message)
    if why.reason in (crash_loop.COORDINATOR_FAILED, silence.SILENT, silence.REFUSES):
        return _say(status, "Training" if phase is Phase.RUNNING else why.reason, why.message)
    if phase is Phase.STARTING:
        return _say(status, "Starting", told if told and not missing else why.message)
    if phase is Phase.RUNNING:
        return _say(status, "Training", told)
    if missing and why.reason != waiting.WAITING_FOR_NODES:
        told = why.message  # more to the point than that the coordinator waits, too
    failure = counted.new[-1] if counted.new else None
    if failure is None and before is Phase.RESTARTING:
        return _say(status, status.reason, told or status.message)
    if failure is None and status.attempts and status.restarts.generation >= status.generation:
        failure = status.attempts[-1]
    if failure is None and _is(observed, RunState.RESTARTING):
        return _say(status, RANK_FAILED, told)
    if failure is None and move.is_moving(status):
        return _say(status, move.SCALED, f"starting again with {run.spec.num_nodes} nodes, not counted as a restart")
    if failure is None:
        return _say(status, DISRUPTED, told or "pods had to leave; starting again, not counted as a restart")
    return _say(status, failure.reason, told or f"{failure.message} ({details(failure)})")


def _forget_troubles(status: Status, now: datetime) -> Status:
    return silence.forget(crash_loop.forget(status, now), now)


def _where_saved(status: Status) -> str:
    saved = status.last_checkpoint
    return "nothing was saved" if saved is None else f"the last checkpoint is step {saved.step} at {saved.uri}"


def _say(status: Status, reason: str, message: str) -> Status:
    return status.model_copy(update={"reason": reason, "message": message[:8_192]})


def _is(observed: Observed, state: RunState) -> bool:
    return observed.report is not None and observed.report.state is state
