"""Another number of nodes: save at an agreed step, then start again with as many. Not counted as a restart.

Once begun it is carried through: ranks may be on their way to the agreed step already.
"""

from datetime import datetime

from everstep_operator.api.trainingrun import Phase, Status, TrainingRun
from everstep_operator.plan.conditions import true_condition, with_condition
from everstep_operator.plan.model import Observed
from everstep_operator.plan.pods import running_workers
from everstep_protocol.messages import RunState

MOVING = "Moving"
SCALING = "Scaling"
MESSAGE = "saving at an agreed step, then going on with the new number of nodes"
SCALED = "Scaled"  # reason of a run that is Restarting because of that


def is_moving(status: Status) -> bool:
    """The condition is the memory of that."""
    return true_condition(status, MOVING) is not None


def began(status: Status) -> datetime | None:
    condition = status.condition(MOVING)
    return condition.last_transition_time if condition is not None and is_moving(status) else None


def begin_if_wanted(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Status:
    """Begin a move that is wanted. Where nothing trains nothing has to be saved, and pods just come and go."""
    resized = run.status.nodes.desired not in (0, run.spec.num_nodes)
    if is_moving(status) or not resized or not _trains(status, observed):
        return status
    return with_condition(status, MOVING, "True", SCALING, MESSAGE, now)


def settle(status: Status, now: datetime) -> Status:
    """All have saved, or there is nobody left who could."""
    return with_condition(status, MOVING, "False", SCALING, "", now) if is_moving(status) else status


def _trains(status: Status, observed: Observed) -> bool:
    if observed.report is None:  # a coordinator that is away stops nobody
        return status.phase is Phase.RUNNING and bool(running_workers(observed))
    return observed.report.state in (RunState.STARTING, RunState.RUNNING)
