"""The pods of a run: their names, what they run, and which one holds a place."""

import hashlib
from dataclasses import replace

from everstep_operator.api.checkpoint import Checkpoint
from everstep_operator.api.trainingrun import Spec, TrainingRun
from everstep_operator.plan.command import launch_command
from everstep_operator.plan.model import DeletePod, Observed, Pod, PodSpec
from everstep_protocol import codec, env, labels
from everstep_protocol.checkpoints import Retention
from everstep_protocol.messages import Intent, RunState
from everstep_protocol.reasons import EXIT_STOPPED

#: A launcher that was about to join when all had saved has nothing to save. It may not even hear a SIGTERM yet: the
#: kernel keeps that from a container's first process until it asks for it.
TOO_LATE_SECONDS = 2.0
#: Exit statuses of a launcher that saved and left because it was told to: by the coordinator, by SIGTERM.
_STOPPED = (EXIT_STOPPED, 128 + 15)


def worker_name(run: TrainingRun, node: int, attempt: int) -> str:
    return f"{prefix(run)}-{node}-{attempt}"


def coordinator_name(run: TrainingRun, attempt: int) -> str:
    return f"{prefix(run)}-coordinator-{attempt}"


def prefix(run: TrainingRun) -> str:
    """What the names of all objects of this very run begin with."""
    return f"{run.metadata.name}-{hashlib.sha256(run.metadata.uid.encode()).hexdigest()[:5]}"


def grace_seconds(run: TrainingRun) -> float:
    """From SIGTERM to SIGKILL: time to save."""
    return float(run.spec.trainer.termination_grace_period_seconds)


def seed(run: TrainingRun) -> int:
    """The run's seed: the same for every run of that namespace and name, so that a repeated manifest repeats itself."""
    digest = hashlib.sha256(f"{run.metadata.namespace}/{run.metadata.name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def worker(run: TrainingRun, node: int, attempt: int, excluded_nodes: tuple[str, ...] = ()) -> PodSpec:
    """The pod of one node: a launcher with the user's command."""
    name = worker_name(run, node, attempt)
    return PodSpec(
        name=name,
        role=labels.WORKER,
        node=node,
        attempt=attempt,
        command=launch_command(run.spec),
        env=user_env(run.spec)
        | _run_env(run, name)
        | {env.NODE: str(node), env.SEED: str(seed(run))}
        | _checkpoint_env(run),
        working_dir=run.spec.trainer.working_dir,
        labels=_labels(run, labels.WORKER, attempt) | {labels.NODE: str(node)},
        grace_seconds=grace_seconds(run),
        excluded_nodes=excluded_nodes,
    )


def coordinator(run: TrainingRun, attempt: int, intent: Intent, excluded_nodes: tuple[str, ...] = ()) -> PodSpec:
    """The pod of the run's coordinator."""
    name = coordinator_name(run, attempt)
    return PodSpec(
        name=name,
        role=labels.COORDINATOR,
        node=None,
        attempt=attempt,
        command=("everstep", "coordinator", "--intent", codec.dumps(intent).decode()),
        env=_run_env(run, name),
        labels=_labels(run, labels.COORDINATOR, attempt),
        grace_seconds=grace_seconds(run),
        excluded_nodes=excluded_nodes,
    )


def selector(run: TrainingRun) -> str:
    """Label selector of the worker pods."""
    return f"{labels.RUN_UID}={run.metadata.uid},{labels.ROLE}={labels.WORKER}"


def _labels(run: TrainingRun, role: str, attempt: int) -> dict[str, str]:
    return {
        labels.RUN: run.metadata.name,
        labels.RUN_UID: run.metadata.uid,
        labels.ROLE: role,
        labels.ATTEMPT: str(attempt),
    }


def _run_env(run: TrainingRun, pod: str) -> dict[str, str]:
    return {
        env.RUN_NAME: run.metadata.name,
        env.RUN_NAMESPACE: run.metadata.namespace,
        env.RUN_UID: run.metadata.uid,
        env.POD: pod,
        env.GRACE_SECONDS: f"{grace_seconds(run):g}",
    }


def user_env(spec: Spec) -> dict[str, str]:
    """The manifest's variables; those of the S3 clients come from `checkpoint` unless they are set there, too."""
    variables = {}
    if (checkpoint := spec.checkpoint) is not None:
        if checkpoint.endpoint is not None:
            variables["AWS_ENDPOINT_URL"] = checkpoint.endpoint
            if checkpoint.endpoint.startswith("http://"):
                variables["AWS_ALLOW_HTTP"] = "true"
        if checkpoint.region is not None:
            variables["AWS_REGION"] = checkpoint.region
    return variables | {v.name: v.value for v in spec.trainer.env if v.value_from is None}


def _checkpoint_env(run: TrainingRun) -> dict[str, str]:
    checkpoint = run.spec.checkpoint
    if checkpoint is None:
        return {}
    variables = {
        env.CHECKPOINT_URI: checkpoint.uri,
        env.CHECKPOINT_EVERY_STEPS: str(checkpoint.every.steps),
        env.CHECKPOINT_KEEP: str(checkpoint.keep),
        env.CHECKPOINT_RESUME: checkpoint.resume,
    }
    retention = _retention(checkpoint)
    if retention != Retention():
        variables[env.CHECKPOINT_RETENTION] = codec.dumps(retention).decode()
    return variables


def _retention(checkpoint: Checkpoint) -> Retention:
    every, best = checkpoint.keep_every, checkpoint.keep_best
    retention = Retention()
    if every is not None:
        retention = replace(retention, every_steps=every.steps or 0, every_seconds=every.seconds or 0)
    if best is not None:
        retention = replace(retention, metric=best.metric, mode=best.mode, best=best.count)
    return retention


# --- questions about observed pods ----------------------------------------------------------------------------------


def workers(observed: Observed) -> list[Pod]:
    return [pod for pod in observed.pods if pod.role == labels.WORKER]


def running_workers(observed: Observed) -> list[Pod]:
    return [pod for pod in workers(observed) if pod.phase == "Running" and not pod.terminating]


def by_place(observed: Observed) -> dict[int | None, list[Pod]]:
    """The pods of each node index, and of the coordinator (None); the newest last."""
    places: dict[int | None, list[Pod]] = {}
    for pod in observed.pods:
        places.setdefault(None if pod.role == labels.COORDINATOR else pod.node, []).append(pod)
    return places


def newest_attempt(observed: Observed) -> int:
    return max((pod.attempt for pod in observed.pods), default=0)


def left_on_request(pod: Pod) -> bool:
    """It ended because somebody told it to: no failure."""
    return pod.disrupted or pod.exit_code in _STOPPED


def died(pod: Pod) -> bool:
    return pod.phase == "Failed" and not left_on_request(pod)


def delete(pod: Pod) -> DeletePod:
    return DeletePod(pod.name, pod.uid)


def delete_all(observed: Observed) -> list[DeletePod]:
    """Those that are not on their way already."""
    report = observed.report
    saved = report is not None and report.state is RunState.STOPPED
    members = {member.pod for member in report.members} if report is not None else set()
    return [
        replace(delete(pod), grace_seconds=TOO_LATE_SECONDS)
        if saved and pod.role == labels.WORKER and pod.name not in members
        else delete(pod)
        for pod in observed.pods
        if not pod.terminating
    ]
