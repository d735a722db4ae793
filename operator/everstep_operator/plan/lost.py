"""Nodes that do not answer. Their pods are forgotten by force, and replaced elsewhere, once nobody vouches for them.

A kubelet that is dead or cut off confirms nothing: its pods stay Running or Terminating for ever. The replacement is
created only after the old pod was deleted by force; should its processes still run somewhere, their generation is over:
the coordinator turns their launcher away and grants them no checkpoint.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import ExcludedNode, Phase, Status, TrainingRun
from everstep_operator.plan.model import DeletePod, Observed, Pod
from everstep_operator.plan.observe import knows_who_is_there
from everstep_operator.plan.pods import workers
from everstep_operator.plan.silence import is_given_up
from everstep_protocol import labels
from everstep_protocol.messages import LOST_SECONDS, Report, RunState
from everstep_protocol.reasons import Reason

#: A launcher that the coordinator has lost has nothing to save: its generation is over.
SILENT_GRACE_SECONDS = 1.0
#: A launcher that finds no coordinator gives up after 300 s, and says why. One that has done neither by now hangs.
UNHEARD_SECONDS = 360.0
_MOST_EXCLUDED = 100


@dataclass(frozen=True)
class Losses:
    """What was decided about them; `observed` is without the pods that are forgotten now."""

    status: Status
    observed: Observed
    actions: tuple[DeletePod, ...] = ()
    wake_after: float | None = None


def look_for_losses(run: TrainingRun, status: Status, observed: Observed, now: datetime) -> Losses:
    """Forget the pods of dead nodes, and have launchers and coordinators killed that have fallen silent."""
    forgotten = {pod.name: why for pod in observed.pods if (why := _why(run, status, observed, pod, now)) is not None}
    kept = [pod for pod in observed.pods if pod.name not in forgotten]
    gone = [pod for pod in observed.pods if pod.name in forgotten]
    silent = {
        pod.name for pod in kept if _is_silent(status, observed, pod, now) or is_given_up(status, observed, pod, now)
    }
    actions = [DeletePod(pod.name, pod.uid, 0.0) for pod in gone]
    actions += [DeletePod(pod.name, pod.uid, SILENT_GRACE_SECONDS) for pod in kept if pod.name in silent]
    waits = [limit for pod in kept if (limit := _limit(run, pod)) is not None and limit > now]
    return Losses(
        status=_noted(run, status, observed, [(pod, forgotten[pod.name]) for pod in gone], now),
        observed=replace(
            observed, pods=tuple(replace(pod, terminating=True) if pod.name in silent else pod for pod in kept)
        ),
        actions=tuple(actions),
        wake_after=min(((limit - now).total_seconds() for limit in waits), default=None),
    )


def excluded_nodes(status: Status) -> tuple[str, ...]:
    return tuple(node.name for node in status.excluded_nodes)


def _why(run: TrainingRun, status: Status, observed: Observed, pod: Pod, now: datetime) -> str | None:
    """Why to forget it; None: it is left alone."""
    excluded = {node.name for node in status.excluded_nodes if node.until > now}
    if not pod.machine and (again := set(pod.kept_from) - excluded):
        return f"{pod.name} has no place yet and may be placed on {', '.join(sorted(again))} again"
    if pod.machine in excluded and _is_unheard(observed, pod):
        return f"node {pod.machine} has lost another pod, and nothing is heard of {pod.name} either"
    limit = _limit(run, pod)
    if limit is None or now < limit or _is_vouched_for(observed, pod):
        return None
    rests = run.status.phase is not None and (run.status.phase.over or run.status.phase is Phase.SUSPENDED)
    if not knows_who_is_there(observed.report) and pod.role == labels.WORKER and not rests:
        return None  # the coordinator that comes back, or is created, will tell whether this launcher lives
    if pod.machine_lost_since is not None:
        return f"node {pod.machine} has not been Ready since {pod.machine_lost_since:%H:%M:%S} UTC"
    return f"node {pod.machine or '?'} does not confirm the end of its pod {pod.name}"


def _limit(run: TrainingRun, pod: Pod) -> datetime | None:
    """Until when its node may take to answer, or to confirm its end."""
    grace = timedelta(seconds=run.spec.failure_policy.node.grace_seconds)
    since = [time for time in (pod.machine_lost_since, pod.gone_by if pod.terminating else None) if time is not None]
    return min(since) + grace if since else None


def _is_unheard(observed: Observed, pod: Pod) -> bool:
    """Of a node that was lost already. Such pods are older than its exclusion: no new one is placed there."""
    if pod.role == labels.COORDINATOR:
        return observed.report is None and not pod.finished
    return knows_who_is_there(observed.report) and pod.phase == "Running" and not _is_vouched_for(observed, pod)


def _is_vouched_for(observed: Observed, pod: Pod) -> bool:
    """The coordinator answers, or it hears the pod's launcher: only the node's kubelet is away, and training goes on.

    One that was cut off has ended its ranks by the time that the coordinator gives it up.
    """
    if pod.role == labels.COORDINATOR:
        return observed.report is not None and not pod.terminating
    members = observed.report.members if observed.report is not None else ()
    return any(member.pod == pod.name for member in members)


def _is_silent(status: Status, observed: Observed, pod: Pod, now: datetime) -> bool:
    """Its launcher has fallen silent or never spoken, and no other one speaks for its node.

    Its node may be well and the launcher hang, so it is killed first, and waited for like any other pod that ends.
    """
    report = observed.report
    if report is None or pod.role != labels.WORKER or pod.phase != "Running" or pod.terminating:
        return False
    if any(member.node == pod.node for member in report.members):
        return False
    if pod.name in report.lost or _is_the_last_loss(status, report, pod, now):
        return True
    over = report.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)
    if over or pod.started is None or report.seconds_up is None:
        return False
    return min(report.seconds_up, (now - pod.started).total_seconds()) >= UNHEARD_SECONDS


def _is_the_last_loss(status: Status, report: Report, pod: Pod, now: datetime) -> bool:
    """The last failure was the loss of this very launcher.

    A coordinator that has never heard it, and knows of its seat from a predecessor's notes, cannot name its pod.
    """
    if not report.failures:
        return False
    last = report.failures[-1]
    lost = last.reason is Reason.NODE_LOST and last.node == pod.node and last.generation > 0
    # Not its replacement: that one was created when the failure was counted, or later; or a little before, where the
    # node was given up first. The one that was lost had spoken, and was then silent for so long.
    was_there = last.generation > status.restarts.generation or pod.attempt <= status.restarts.attempt
    counted = next((attempt.time for attempt in status.attempts if attempt.generation == last.generation), now)
    return lost and was_there and (pod.created is None or pod.created <= counted - timedelta(seconds=LOST_SECONDS))


def _noted(run: TrainingRun, status: Status, observed: Observed, gone: list[tuple[Pod, str]], now: datetime) -> Status:
    """Which nodes to avoid, and a number for the replacements that none of the forgotten pods had."""
    until = now + timedelta(seconds=run.spec.failure_policy.node.exclude_seconds)
    nodes = {node.name: node for node in status.excluded_nodes if node.until > now}
    for pod, why in gone:
        if pod.machine and until > now:
            nodes[pod.machine] = ExcludedNode(name=pod.machine, reason=why, until=until)
    attempt = max([status.attempt + _has_vanished(run, observed), *(pod.attempt + 1 for pod, _ in gone)])
    newest = tuple(sorted(nodes.values(), key=lambda node: (node.until, node.name)))[-_MOST_EXCLUDED:]
    return status.model_copy(update={"excluded_nodes": newest, "attempt": attempt})


def _has_vanished(run: TrainingRun, observed: Observed) -> bool:
    """A pod that ran when the status was written is gone without a trace: somebody else deleted it by force."""
    over = run.status.phase is None or run.status.phase.over
    return not over and run.status.nodes.ready > len({pod.node for pod in workers(observed)})
