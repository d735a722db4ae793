"""What of the surroundings belongs to this very run."""

from collections.abc import Iterable

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.plan.model import Observed, Pod, Silence
from everstep_protocol.messages import LOST_SECONDS, Report


def observe(run: TrainingRun, pods: Iterable[Pod], answer: Report | Silence | None) -> Observed:
    """Leave out pods and the report of an earlier run that had the same name."""
    uid = run.metadata.uid
    ours = sorted((p for p in pods if p.run_uid == uid), key=lambda p: (p.role, p.node or 0, p.attempt))
    if answer is None or isinstance(answer, Silence):
        return Observed(tuple(ours), silence=answer)
    if answer.intent is not None and answer.intent.run_uid not in ("", uid):
        return Observed(tuple(ours), silence=Silence("the coordinator of another run answers at its address"))
    return Observed(tuple(ours), answer)


def knows_who_is_there(report: Report | None) -> bool:
    """A coordinator answers, and each launcher that lives has had the time to find it."""
    return report is not None and (report.seconds_up is None or report.seconds_up >= LOST_SECONDS)
