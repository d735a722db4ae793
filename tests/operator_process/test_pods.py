"""What a v1 Pod tells: by its trainer container, whatever runs beside it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from everstep_operator.cluster.kubernetes.pods import seen
from everstep_operator.plan.model import Pod
from everstep_operator.plan.pods import died
from everstep_protocol import labels
from everstep_protocol.reasons import Reason
from tests.render import golden

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:05Z"}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def pod(state: dict[str, Any] | None, phase: str = "Running", **status: Any) -> Pod:
    metadata = status.pop("metadata", {})
    sidecar = status.pop("sidecar", RUNNING)
    containers = (
        [] if state is None else [{"name": "log-shipper", "state": sidecar}, {"name": "trainer", "state": state}]
    )
    marks = {
        labels.RUN: "first",
        labels.RUN_UID: "run-uid",
        labels.ROLE: labels.WORKER,
        labels.NODE: "2",
        labels.ATTEMPT: "3",
    }
    item = {
        "metadata": {
            "name": "first-2-3",
            "namespace": "team",
            "uid": "pod-uid",
            "resourceVersion": "17",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": marks,
            "ownerReferences": [{"kind": "TrainingRun", "name": "first", "uid": "run-uid", "controller": True}],
            **metadata,
        },
        "spec": {
            "nodeName": "node1",
            "initContainers": status.pop("init", []),
            "containers": [{"name": "log-shipper"}, {"name": "trainer"}],
        },
        "status": {"phase": phase, "podIP": "10.0.0.7", "containerStatuses": containers, **status},
    }
    whole = seen(item)
    assert (whole.run.namespace, whole.run.name, whole.version, whole.address) == ("team", "first", 17, "10.0.0.7")
    found = whole.pod
    assert (found.uid, found.run_uid, found.node, found.attempt, found.machine) == ("pod-uid", "run-uid", 2, 3, "node1")
    return found


def test_a_sidecar_that_never_ends_keeps_nothing_from_succeeding() -> None:
    done = pod(ended(0, "Completed"))
    assert (done.phase, done.exit_code, done.failure) == ("Succeeded", 0, None)
    assert done.sidecars_run
    assert not pod(ended(0, "Completed"), phase="Succeeded").sidecars_run
    assert not pod(RUNNING).sidecars_run
    moment = pod(ended(0, "Completed"), sidecar=ended(0))
    assert not moment.sidecars_run, "its phase follows a moment after its last container"


def test_since_when_it_runs_is_told_by_its_trainer_container() -> None:
    assert pod(RUNNING).started == datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert pod(waiting("ContainerCreating"), "Pending").started is None
    assert pod(ended(0)).started is None


def test_a_sidecar_that_dies_is_no_failure() -> None:
    assert pod(RUNNING, sidecar=ended(1)).phase == "Running"


def test_last_words_are_the_failure() -> None:
    dead = pod(ended(7, message='{"reason": "OutOfMemory", "message": "no room", "rank": 4, "last_lines": ["a", "b"]}'))
    assert (dead.phase, dead.exit_code) == ("Failed", 7)
    assert dead.failure is not None
    assert (dead.failure.reason, dead.failure.rank, dead.failure.last_lines) == (Reason.OUT_OF_MEMORY, 4, ("a", "b"))


def test_who_was_killed_for_memory_could_not_speak() -> None:
    dead = pod(ended(137, "OOMKilled"))
    assert dead.failure is not None
    assert dead.failure.reason is Reason.OUT_OF_MEMORY


def test_a_command_that_is_not_there() -> None:
    dead = pod(ended(128, "StartError", 'exec: "trian": executable file not found in $PATH'), phase="Failed")
    assert dead.failure is not None
    assert dead.failure.reason is Reason.COMMAND_NOT_FOUND


def test_words_that_nobody_understands_are_none() -> None:
    killed = pod(ended(137, message="loading\n\nstep 7\n"))
    assert killed.failure is None
    assert killed.last_lines == ("loading", "step 7"), "the kubelet gives the end of the log instead"
    assert pod(ended(137, message='{"reason": "Kil')).last_lines == ()


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "Unschedulable",
            "0/3",
        ),
        ({"state": waiting("ErrImagePull", "not found")}, "ErrImagePull", "ErrImagePull: not found"),
        (
            {"state": waiting("CreateContainerConfigError", 'secret "s3" not found')},
            "CreateContainerConfigError",
            'CreateContainerConfigError: secret "s3" not found',
        ),
        (
            {
                "state": waiting("PodInitializing"),
                "initContainerStatuses": [{"name": "fetch", "state": waiting("ImagePullBackOff", "Back-off")}],
            },
            "ImagePullBackOff",
            "ImagePullBackOff: Back-off",
        ),
        ({"state": waiting("ContainerCreating")}, "ContainerCreating", "ContainerCreating"),
    ],
)
def test_why_it_waits(status: dict[str, Any], reason: str, words: str) -> None:
    found = pod(status.pop("state", None), phase="Pending", **status)
    assert (found.phase, found.waiting_reason, found.message) == ("Pending", reason, words)


def test_a_running_sidecar_does_not_make_a_waiting_trainer_run() -> None:
    assert pod(waiting("ContainerCreating")).phase == "Pending"


def test_an_init_container_that_failed() -> None:
    init = {"name": "fetch", "state": ended(3, "Error", "no such archive")}
    dead = pod(waiting("PodInitializing"), phase="Failed", initContainerStatuses=[init])
    assert (dead.phase, dead.exit_code) == ("Failed", 3)
    assert dead.message == "init container fetch exited with 3: no such archive"


@pytest.mark.parametrize("reason", ["Preempting", "OutOfcpu", "NodeShutdown", "UnexpectedAdmissionError"])
def test_taken_away_by_the_cluster(reason: str) -> None:
    gone = pod(None, phase="Failed", reason=reason, message="The node was low on resource: memory.")
    assert (gone.phase, gone.disrupted, gone.exit_code) == ("Failed", True, None)
    assert gone.message == f"{reason}: The node was low on resource: memory."


def test_who_is_evicted_for_want_of_the_node_is_disrupted_and_who_took_too_much_has_failed() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    pressed = pod(ended(143), phase="Failed", reason="Evicted", message="low on memory", conditions=[target])
    assert pressed.disrupted
    greedy = pod(ended(143), phase="Failed", reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds 1Gi')
    assert died(greedy), "also if its launcher left by SIGTERM"
    assert greedy.message == 'Evicted: Usage of EmptyDir volume "shm" exceeds 1Gi'


def test_a_native_sidecar_that_is_killed_at_the_end_explains_nothing() -> None:
    init = [{"name": "proxy", "restartPolicy": "Always"}, {"name": "fetch"}]
    told = [{"name": "proxy", "state": ended(143)}, {"name": "fetch", "state": ended(0)}]
    dead = pod(ended(1, "Error"), phase="Failed", init=init, initContainerStatuses=told)
    assert (dead.exit_code, dead.message) == (1, "Error")
    gone = pod(None, phase="Failed", init=init, initContainerStatuses=told)
    assert (gone.exit_code, gone.message) == (None, "")


def test_a_pod_is_of_the_run_that_controls_it_whatever_its_labels_say() -> None:
    copied = {
        "name": "copy",
        "namespace": "team",
        "uid": "another",
        "resourceVersion": "18",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {labels.RUN: "first", labels.RUN_UID: "run-uid", labels.ROLE: labels.WORKER, labels.NODE: "2"},
    }
    controlled = {"kind": "TrainingRun", "name": "first", "uid": "run-uid", "controller": True}
    assert seen({"metadata": copied}).pod.run_uid == ""
    assert seen({"metadata": copied | {"ownerReferences": [controlled | {"kind": "Job"}]}}).pod.run_uid == ""
    assert seen({"metadata": copied | {"ownerReferences": [controlled | {"controller": False}]}}).pod.run_uid == ""
    assert seen({"metadata": copied | {"ownerReferences": [controlled]}}).pod.run_uid == "run-uid"


def test_a_drain_marks_it_before_it_ends() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    going = pod(RUNNING, conditions=[target], metadata={"deletionTimestamp": "2026-01-01T00:01:00Z"})
    assert (going.phase, going.disrupted, going.terminating) == ("Running", True, True)
    assert going.gone_by == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


def test_nodes_that_it_was_kept_from_are_known_from_what_was_rendered() -> None:
    (rendered,) = golden.GOLDEN["container"].render()
    annotations = rendered["metadata"]["annotations"]
    assert pod(None, metadata={"annotations": annotations}).kept_from == ("node-a", "node-b")
    assert pod(None).kept_from == ()
