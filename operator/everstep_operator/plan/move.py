"""Another number of nodes, or a node that is about to be drained: save at an agreed step, then start again elsewhere.

Not counted as a restart. Once begun it is carried through: ranks may be on their way to the agreed step already.
"""

from datetime import datetime

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan.conditions import with_condition
from everstep_operator.plan.model import Observed, Pod
from everstep_operator.plan.pods import running_workers, workers
from everstep_protocol.messages import RunState, StopCause

MOVING = "Moving"
SCALING = "Scaling"
DRAINING = "Draining"
SCALED = "Scaled"  # reason of a run that is Restarting because of that

_CAUSES = {SCALING: StopCause.SCALE, DRAINING: StopCause.PREEMPTION}
_MESSAGES = {
    SCALING: "saving at an agreed step, then going on with the new number of nodes",
    DRAINING: "saving at an agreed step, then moving away from nodes that are being drained",
}


def is_moving(status: Status) -> bool:
    """The condition is the memory of that."""
    condition = status.condition(MOVING)
    return condition is not None and condition.status == "True"


def why(status: Status) -> str:
    """Of the last move: Scaling or Draining; "" if there was none."""
    condition = status.condition(MOVING)
    return "" if condition is None else condition.reason


def cause(status: Status) -> StopCause | None:
    return _CAUSES.get(why(status)) if is_moving(status) else None


def began(status: Status) -> datetime | None:
    condition = status.condition(MOVING)
    return condition.last_transition_time if condition is not None and is_moving(status) else None


def begin_if_wanted(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Status:
    """Begin a move that is wanted. Where nothing trains nothing has to be saved, and pods just come and go."""
    if is_moving(status) or not _trains(status, observed):
        return status
    resized = run.status.nodes.desired not in (0, run.spec.num_nodes)
    reason = SCALING if resized else DRAINING if _is_drained(observed, now) else None
    return status if reason is None else with_condition(status, MOVING, "True", reason, _MESSAGES[reason], now)


def settle(status: Status, now: datetime) -> Status:
    """All have saved, or there is nobody left who could."""
    return with_condition(status, MOVING, "False", why(status), "", now) if is_moving(status) else status


def _trains(status: Status, observed: Observed) -> bool:
    if observed.report is None:  # a coordinator that is away stops nobody
        return status.phase is Phase.RUNNING and bool(running_workers(observed))
    return observed.report.state in (RunState.STARTING, RunState.RUNNING)


def _is_drained(observed: Observed, now: datetime) -> bool:
    """A worker has to leave its node. One that was evicted says so itself, unless its kubelet does not tell it."""
    return any(pod.phase == "Running" and (pod.machine_cordoned or _is_overdue(pod, now)) for pod in workers(observed))


def _is_overdue(pod: Pod, now: datetime) -> bool:
    return pod.disrupted and pod.gone_by is not None and pod.gone_by <= now


def message(status: Status) -> str:
    return _MESSAGES.get(why(status), "")
