"""One turn for one run: look, plan, write down what is going to be done, do it."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.cluster.port import AlreadyExists, Cluster, Conflict, NotFound, Refused, RunKey
from everstep_operator.plan import make_plan, observe, pods, refusal
from everstep_operator.plan.events import changes
from everstep_operator.plan.model import Action, CreatePod, DeletePod, DeleteRun, Plan, SendIntent

#: A coordinator sends no events, so it is asked this often.
POLL_SECONDS = 5.0
#: Somebody else wrote the object in between: look again soon.
RETRY_SECONDS = 0.2


async def reconcile(
    cluster: Cluster,
    key: RunKey,
    now: datetime,
    can_wait: Callable[[str, Status, Status], bool] = lambda uid, old, new: False,
    poll_seconds: Callable[[], float] = lambda: POLL_SECONDS,
) -> float | None:
    """Returns the seconds until the next look even if nothing changes; None: only when something changes.

    Args:
        can_wait: whether the new status of the run of that uid need not be written now.
        poll_seconds: until the next look at a run of which not every change is told.

    Raises:
        Unavailable: the cluster does not answer; nothing is lost by trying again later.
    """
    try:
        run = await cluster.get_run(key)
    except NotFound:
        return None
    # Pods before the report: a pod that is seen dead because the run is over must find a report that says so.
    listed = await cluster.list_pods(run)
    answer = await cluster.get_report(run)
    plan = make_plan(run, observe(run, listed, answer), now)
    try:
        if plan.status != run.status and not can_wait(run.metadata.uid, run.status, plan.status):
            run = await cluster.save_status(run, plan.status)  # intent first: a crash from here on repeats the acts
    except Conflict:
        return RETRY_SECONDS
    except NotFound:
        return None
    try:
        said = await _act(cluster, run, plan)
        if said:
            return await _tell_of_refusal(cluster, run, said, now)
    finally:
        if plan.events:
            await cluster.post_events(run, plan.events)
    looks = [seconds for seconds in (plan.wake_after, poll_seconds() if plan.poll else None) if seconds is not None]
    return min(looks, default=None)


async def _act(cluster: Cluster, run: TrainingRun, plan: Plan) -> str:
    """Do what was planned. Returns what was refused; the first pod that was speaks for those after it."""
    said = ""
    for action in plan.actions:
        try:
            if not (said and isinstance(action, CreatePod)):
                await _apply(cluster, run, action)
        except Refused as error:
            said = str(error)
    return said


async def _tell_of_refusal(cluster: Cluster, run: TrainingRun, said: str, now: datetime) -> float:
    status = refusal.refused(run.status, said, now)
    try:
        saved = await cluster.save_status(run, status)
    except (Conflict, NotFound):
        return RETRY_SECONDS
    await cluster.post_events(saved, changes(run.status, status))
    return RETRY_SECONDS  # the planner words it, and knows when to try again


async def _apply(cluster: Cluster, run: TrainingRun, action: Action) -> None:
    """Do it, or find it done. What is neither, the next look finds again."""
    match action:
        case CreatePod(spec):
            try:
                await cluster.create_pod(run, spec)
            except AlreadyExists:
                if spec.name not in {pod.name for pod in await cluster.list_pods(run)}:
                    raise Refused(f"the name {spec.name} belongs to a pod of somebody else: delete that one") from None
        case DeletePod(name, uid, grace_seconds):
            grace = pods.grace_seconds(run) if grace_seconds is None else grace_seconds
            with suppress(NotFound, Conflict):  # gone, or gone and followed by another
                await cluster.delete_pod(run, name, uid, grace)
        case SendIntent(intent):
            await cluster.send_intent(run, intent)
        case DeleteRun():
            with suppress(NotFound, Conflict):
                await cluster.delete_run(run)
