"""Small builders: a run, its pods, a report. Time is T0 plus seconds."""

from datetime import UTC, datetime, timedelta
from typing import Any

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.plan import make_plan, observe
from everstep_operator.plan.model import CreatePod, DeletePod, Plan, Pod, PodSpec, SendIntent, Silence
from everstep_protocol import labels
from everstep_protocol.messages import CheckpointInfo, Intent, Progress, Report, RunState
from everstep_protocol.reasons import Failure, Reason

UID = "0000-uid"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def run(
    nodes: int = 2,
    *,
    min: int | None = None,
    max: int | None = None,
    status: Status | None = None,
    max_restarts: int = 3,
    command: tuple[str, ...] = ("python", "train.py"),
    trainer: dict[str, Any] | None = None,
    **spec: Any,
) -> TrainingRun:
    if min is not None:
        spec["elasticPolicy"] = {"minNodes": min, "maxNodes": max or nodes}
    document = {
        "metadata": {"name": "run", "namespace": "team", "uid": UID, "generation": 1},
        "spec": {
            "numNodes": nodes,
            "trainer": {"command": command, **(trainer or {})},
            "failurePolicy": {"maxRestarts": max_restarts},
            **spec,
        },
    }
    whole = TrainingRun.model_validate(document)
    return whole if status is None else whole.model_copy(update={"status": status})


def pod(node: int | None, attempt: int = 1, *, phase: str = "Running", uid: str = UID, **fields: Any) -> Pod:
    role = labels.COORDINATOR if node is None else labels.WORKER
    place = "coordinator" if node is None else str(node)
    name = fields.pop("name", f"run-{place}-{attempt}")
    return Pod(name, f"uid-of-{name}", role, node, attempt, phase, run_uid=uid, **fields)


def dead(node: int | None, attempt: int = 1, *, exit_code: int = 1, **fields: Any) -> Pod:
    return pod(node, attempt, phase="Failed", exit_code=exit_code, **fields)


def done(node: int, attempt: int = 1) -> Pod:
    return pod(node, attempt, phase="Succeeded", exit_code=0)


def all_pods(nodes: int = 2, **fields: Any) -> list[Pod]:
    return [pod(None, **fields), *(pod(node, **fields) for node in range(nodes))]


def failure(generation: int, reason: Reason = Reason.KILLED, step: int = 0, message: str = "rank 1 died") -> Failure:
    return Failure(reason, message, node=1, rank=1, step=step, generation=generation, signal=9)


def intent(nodes: int = 2, **fields: Any) -> Intent:
    values: dict[str, Any] = {"nodes": nodes, "min_nodes": nodes, "max_restarts": 3, "run_uid": UID}
    return Intent(**(values | fields))


def report(state: RunState = RunState.RUNNING, generation: int = 1, **fields: Any) -> Report:
    values: dict[str, Any] = {"world_size": 2, "restarts": 0, "intent": intent()}
    return Report(1, state, generation, **(values | fields))


def progress(step: int, max_steps: int | None = 100) -> Progress:
    return Progress(step=step, max_steps=max_steps, loss=0.5, stage="fit")


def checkpoint(step: int, note: str = "") -> CheckpointInfo:
    return CheckpointInfo(step, f"s3://b/p/{step}", 2, 1, T0.timestamp(), note=note)


def plan(
    run: TrainingRun, pods: list[Pod] | None = None, report: Report | Silence | None = None, seconds: float = 0.0
) -> Plan:
    return make_plan(run, observe(run, pods or [], report), at(seconds))


def then(run: TrainingRun, plan: Plan) -> TrainingRun:
    """The run after the plan's status was saved."""
    return run.model_copy(update={"status": plan.status})


def created(plan: Plan) -> list[PodSpec]:
    return [action.spec for action in plan.actions if isinstance(action, CreatePod)]


def created_places(plan: Plan) -> list[tuple[int | None, int]]:
    return [(spec.node, spec.attempt) for spec in created(plan)]


def deleted(plan: Plan) -> list[str]:
    return [action.name for action in plan.actions if isinstance(action, DeletePod)]


def told(plan: Plan) -> list[Intent]:
    return [action.intent for action in plan.actions if isinstance(action, SendIntent)]


def running(nodes: int = 2, **spec: Any) -> TrainingRun:
    """A run that trains in generation 1."""
    new = run(nodes, **spec)
    started = then(new, plan(new))
    pods = all_pods(nodes)
    wanted = intent(nodes, min_nodes=new.spec.min_nodes, max_restarts=new.spec.failure_policy.max_restarts)
    return then(started, plan(started, pods, report(intent=wanted, progress=progress(10))))
