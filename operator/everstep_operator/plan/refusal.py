"""The cluster does not let a pod be created: say so, and try again, less and less often."""

from dataclasses import replace
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Refusal, Status, TrainingRun
from everstep_operator.plan.model import CreatePod, Observed, Plan
from everstep_protocol import labels
from everstep_protocol.backoff import Backoff, delay

#: Quotas are freed by the end of other runs: nobody tells us of it.
_BACKOFF = Backoff(initial_seconds=2.0, factor=2.0, max_seconds=60.0)

QUOTA = "Quota"
REFUSED = "Refused"


def refused(status: Status, message: str, now: datetime) -> Status:
    """The status after one more attempt was refused, with the cluster's words."""
    before = status.refusal.count if status.refusal is not None else 0
    refusal = Refusal(message=message[:4_096], count=before + 1, time=now)
    return status.model_copy(update={"refusal": refusal})


def retry_at(run: TrainingRun, status: Status) -> datetime | None:
    """Before then no pod is created; None: nothing was refused."""
    if status.refusal is None:
        return None
    seconds = delay(_BACKOFF, status.refusal.count + 1, run.metadata.uid)
    return status.refusal.time + timedelta(seconds=seconds)


def forget_if_filled(run: TrainingRun, status: Status, observed: Observed) -> Status:
    """Nothing is missing (any more): what was refused is history."""
    if status.refusal is None:
        return status
    held = {(pod.role, pod.node) for pod in observed.pods if pod.phase != "Failed"}
    wanted = {(labels.COORDINATOR, None), *((labels.WORKER, node) for node in range(run.spec.num_nodes))}
    return status if wanted - held else status.model_copy(update={"refusal": None})


def hold_back(run: TrainingRun, plan: Plan, now: datetime) -> Plan:
    """The plan without the pods that would be refused again now."""
    limit = retry_at(run, plan.status)
    if limit is None or now >= limit or not any(isinstance(action, CreatePod) for action in plan.actions):
        return plan
    actions = tuple(action for action in plan.actions if not isinstance(action, CreatePod))
    wait = (limit - now).total_seconds()
    return replace(plan, actions=actions, wake_after=wait if plan.wake_after is None else min(wait, plan.wake_after))


def reason_of(refusal: Refusal) -> str:
    return QUOTA if "exceeded quota" in refusal.message or "failed quota" in refusal.message else REFUSED
