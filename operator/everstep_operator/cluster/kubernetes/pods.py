"""What a v1 Pod tells of a run. Pure: dicts in, values out.

A pod is judged by its trainer container: sidecars come, go and never end, and say nothing of the training.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from everstep_operator.api.trainingrun import KIND
from everstep_operator.cluster.port import RunKey
from everstep_operator.cluster.render import MAIN_CONTAINER
from everstep_operator.plan.model import Pod
from everstep_protocol import codec, labels
from everstep_protocol.reasons import LAST_LINES, LINE_LIMIT, Failure, Reason

#: status.reason of pods that the cluster took away or would not start, for reasons of its own.
_CLUSTERS_OWN = frozenset(
    {"Preempting", "NodeShutdown", "Terminated", "NodeLost", "NodeAffinity", "UnexpectedAdmissionError"}
)
#: For a node's own shortage, which the condition DisruptionTarget tells, or for the pod's: it took more of a disk or
#: of an emptyDir than its limit, and its replacement would, too.
_EVICTED = "Evicted"
#: A kubelet that cannot fit a pod says OutOfcpu, OutOfmemory, OutOfpods, OutOfnvidia.com/gpu, …
_NO_ROOM = "OutOf"
#: Reasons of a container that waits for what comes before it, and so explain nothing.
ON_ITS_WAY = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True)
class Seen:
    """A pod, and what only the adapter needs of it."""

    run: RunKey
    pod: Pod  # without what its Node tells
    version: int
    address: str  # of the pod; "": none yet
    created: datetime


def seen(item: dict[str, Any]) -> Seen:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    marks = metadata.get("labels") or {}
    sidecars = {c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"}
    role = marks.get(labels.ROLE, "")
    state = _main_container(role, status).get("state") or {}
    ended = state.get("terminated")
    deleted = metadata.get("deletionTimestamp")
    phase = _phase(status, state)
    before = [s for s in status.get("initContainerStatuses") or [] if s["name"] not in sidecars]
    reason, message = _why_waiting(status) if phase == "Pending" else ("", _why_ended(status, before, ended))
    disrupted = _is_disrupted(status)
    to_blame = status.get("reason") == _EVICTED and not disrupted
    pod = Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        role=role,
        node=_number(marks.get(labels.NODE)),
        attempt=_number(marks.get(labels.ATTEMPT)) or 0,
        phase=phase,
        terminating=deleted is not None,
        # Who was to blame for its eviction has not left on request, whatever its launcher made of the SIGTERM.
        exit_code=None if to_blame else ended["exitCode"] if ended else _exit_of(before) if phase == "Failed" else None,
        failure=_failure(ended) if ended and not to_blame else None,
        message=message,
        disrupted=disrupted,
        run_uid=_run_uid(metadata),
        sidecars_run=ended is not None and _others_run(role, status),
        last_lines=_last_lines(ended) if ended else (),
        waiting_reason=reason,
        gone_by=None if deleted is None else time(deleted),
        machine=spec.get("nodeName") or "",
        created=time(metadata["creationTimestamp"]),
        started=time(begun) if (begun := (state.get("running") or {}).get("startedAt")) else None,
        kept_from=tuple(filter(None, (metadata.get("annotations") or {}).get(labels.KEPT_FROM, "").split(","))),
    )
    return Seen(
        run=RunKey(metadata["namespace"], marks.get(labels.RUN, "")),
        pod=pod,
        version=int(metadata["resourceVersion"]),
        address=status.get("podIP") or "",
        created=time(metadata["creationTimestamp"]),
    )


def time(text: str) -> datetime:
    """RFC 3339, as the API server writes it."""
    return datetime.fromisoformat(text)


def _run_uid(metadata: dict[str, Any]) -> str:
    """Of the run that controls it. Labels are copied (`kubectl debug --copy-to --keep-labels`); "": it is nobody's."""
    owners = metadata.get("ownerReferences") or []
    return next((str(o["uid"]) for o in owners if o.get("controller") and o.get("kind") == KIND), "")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _main_container(role: str, status: dict[str, Any]) -> dict[str, Any]:
    """Status of the container that we rendered; {} before there is any."""
    name = MAIN_CONTAINER.get(role)
    return next((s for s in status.get("containerStatuses") or [] if s["name"] == name), {})


def _others_run(role: str, status: dict[str, Any]) -> bool:
    """A pod whose only container has ended is Running for a moment longer, too."""
    states = [
        s.get("state") or {} for s in status.get("containerStatuses") or [] if s["name"] != MAIN_CONTAINER.get(role)
    ]
    return status.get("phase") == "Running" and any("terminated" not in state for state in states)


def _phase(status: dict[str, Any], state: dict[str, Any]) -> str:
    if (ended := state.get("terminated")) is not None:
        return "Succeeded" if ended["exitCode"] == 0 else "Failed"
    whole = str(status.get("phase") or "Pending")
    if whole in ("Failed", "Succeeded"):
        return "Failed"  # it is over, and nobody knows how our container ended
    return "Running" if "running" in state else "Pending"


def _why_waiting(status: dict[str, Any]) -> tuple[str, str]:
    """One word and a sentence of the cluster."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("reason") or "", condition.get("message") or condition.get("reason") or ""
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waiting = [s["state"]["waiting"] for s in statuses if "waiting" in (s.get("state") or {})]
    stuck = [w for w in waiting if w.get("reason") not in ON_ITS_WAY]
    for w in [*stuck, *waiting]:
        reason = w.get("reason") or ""
        return reason, f"{reason}: {w['message']}" if w.get("message") else reason
    return "", ""


def _why_ended(status: dict[str, Any], before: list[dict[str, Any]], ended: dict[str, Any] | None) -> str:
    """`before`: statuses of the containers that had to end before the trainer began."""
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message') or 'taken away by the cluster'}"
    for s in before:
        init = (s.get("state") or {}).get("terminated")
        if init and init["exitCode"] != 0:
            words = init.get("message") or init.get("reason") or ""
            return f"init container {s['name']} exited with {init['exitCode']}: {words}".strip(": ")
    return str(ended.get("reason") or "") if ended and ended["exitCode"] != 0 else ""


def _exit_of(before: list[dict[str, Any]]) -> int | None:
    for s in before:
        ended = (s.get("state") or {}).get("terminated")
        if ended and ended["exitCode"] != 0:
            return int(ended["exitCode"])
    return None


def _failure(ended: dict[str, Any]) -> Failure | None:
    """Last words of the launcher; what the kubelet knows of a container that could not speak."""
    if ended["exitCode"] == 0:
        return None
    message = ended.get("message") or ""
    try:
        return codec.loads(Failure, message)
    except codec.BadMessage:
        pass
    if ended.get("reason") == "OOMKilled":
        return Failure(Reason.OUT_OF_MEMORY, "the container was killed: it used more than its memory limit", signal=9)
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        absent = "not found" in message or "no such file" in message
        return Failure(Reason.COMMAND_NOT_FOUND if absent else Reason.UNKNOWN, message, exit_code=ended["exitCode"])
    return None


def _last_lines(ended: dict[str, Any]) -> tuple[str, ...]:
    """The end of its log: what the kubelet puts in the place of last words that were never spoken."""
    message = ended.get("message") or ""
    if ended["exitCode"] == 0 or message.startswith("{"):
        return ()
    return tuple(line[:LINE_LIMIT] for line in message.splitlines() if line.strip())[-LAST_LINES:]


def _is_disrupted(status: dict[str, Any]) -> bool:
    conditions = status.get("conditions") or []
    reason = status.get("reason") or ""
    target = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions)
    return target or reason in _CLUSTERS_OWN or reason.startswith(_NO_ROOM)
