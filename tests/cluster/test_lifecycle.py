"""What people do with a run from its beginning to its end."""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import yaml

from everstep_protocol import labels
from tests.cluster import store
from tests.cluster.conftest import CHART, IMAGES, RELEASE, ROOT, SYSTEM
from tests.cluster.kube import Object, apply, get, kubectl, listed, until
from tests.cluster.runs import GONE, ONLY_WHEN_ASKED, Run, tiny

pytestmark = pytest.mark.cluster

Start = Callable[[Object], Run]


def saved_step(run: Run, rank: int = 0) -> int:
    """The step that a rank of tiny.py has in the store."""
    return int(store.content(f"{run.prefix}rank{rank}.json"))


def test_ten_runs_at_once_all_succeed(start: Start) -> None:
    runs = [start(tiny(f"ten-{i}", "--steps", 20)) for i in range(10)]
    for run in runs:
        status = run.phase("Succeeded", "Failed", seconds=240)
        assert status["phase"] == "Succeeded", run.picture()
        assert status["progress"]["step"] == 20
        assert status["restarts"]["total"] == 0


def test_a_sidecar_that_never_ends_keeps_no_run_from_succeeding(start: Start) -> None:
    sidecar = {
        "name": "never-ends",
        "image": os.environ["EVERSTEP_RUNTIME_IMAGE"],
        "command": ["sleep", "infinity"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    manifest = tiny("sidecar", "--steps", 30)
    manifest["spec"]["podTemplate"] = {"spec": {"containers": [sidecar]}}
    run = start(manifest)
    run.phase("Starting", "Running")
    assert len(run.pod(0)["spec"]["containers"]) == 2
    assert run.phase("Succeeded", "Failed")["phase"] == "Succeeded", run.picture()
    until("the sidecar's pod is stopped", lambda: all(p["status"]["phase"] != "Running" for p in run.pods()), 90)


def test_suspend_saves_and_stops_and_resume_goes_on_from_there(start: Start) -> None:
    run = start(tiny("suspend", "--steps", 400, "--pause", 0.1, *ONLY_WHEN_ASKED, nodes=2))
    run.reaches(5)
    run.patch(suspend=True)
    status = run.phase("Suspended")
    until("its pods are gone", lambda: not [p for p in run.pods() if p["status"]["phase"] == "Running"])
    kept = saved_step(run)
    assert kept == saved_step(run, 1), "all ranks saved at one agreed step"
    assert 5 <= kept < 400
    assert status["lastCheckpoint"]["step"] == kept
    run.patch(suspend=False)
    status = run.phase("Starting", "Running")
    assert status["phase"] != "Suspended"
    status = run.reaches(kept + 5)
    assert status["phase"] == "Running"
    assert status["resumedFrom"]["step"] == kept
    assert status["restarts"]["total"] == 0, "a suspension is no restart"


def test_scale_grows_and_shrinks_a_running_run(start: Start) -> None:
    """kubectl scale tr/x --replicas=3."""
    elastic = {"minNodes": 1, "maxNodes": 3}
    run = start(tiny("scale", "--steps", 3000, "--pause", 0.1, *ONLY_WHEN_ASKED, nodes=2, elasticPolicy=elastic))
    run.reaches(5)
    for replicas in (3, 1):
        before = run.step
        kubectl("scale", f"trainingrun/{run.name}", "-n", run.namespace, f"--replicas={replicas}")
        until(
            f"{replicas} ranks train",
            lambda replicas=replicas: run.status["phase"] == "Running" and run.status["worldSize"] == replicas,  # type: ignore[misc]
            120,
        )
        status = run.reaches(before + 5)
        assert status["nodes"]["desired"] == replicas
        until("it went on from where it had saved", lambda: run.status.get("resumedFrom", {}).get("step", 0) >= 5)
        assert status["restarts"]["total"] == 0, "a change of size is no failure"
    scale = kubectl("get", "trainingrun", run.name, "-n", run.namespace, "--subresource=scale", "-o", "yaml")
    assert "replicas: 1" in scale
    assert labels.RUN_UID in scale


def test_delete_while_training_saves_first_and_leaves_nothing(start: Start) -> None:
    run = start(tiny("delete", "--steps", 3000, "--pause", 0.1, *ONLY_WHEN_ASKED, nodes=2))
    run.reaches(5)
    run.delete("--wait=false")
    selector = f"{labels.RUN_UID}={run.uid}"
    until("its pods are gone", lambda: not listed("pods", run.namespace, selector), 60)
    kept = saved_step(run)
    assert kept == saved_step(run, 1), "all ranks saved at one agreed step"
    assert kept >= 5
    for kind in ("services", "secrets", "networkpolicies", "configmaps"):
        until(f"no {kind} are left", lambda kind=kind: not listed(kind, run.namespace, selector), 30)  # type: ignore[misc]


@contextmanager
def no_operator() -> Iterator[None]:
    """The release's own is away."""
    kubectl("scale", "deployment", RELEASE, "-n", SYSTEM, "--replicas=0")
    try:
        until("no operator runs", lambda: not listed("pods", SYSTEM, "app.kubernetes.io/name=everstep"), 60)
        yield
    finally:
        kubectl("scale", "deployment", RELEASE, "-n", SYSTEM, "--replicas=2")
        kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=90s")


@pytest.mark.serial
def test_deletes_while_no_operator_runs(start: Start) -> None:
    """Of a run and of a namespace: no finalizer of ours holds them, and the grace checkpoint needs no operator."""
    long = ("--steps", 5000, "--pause", 0.1, *ONLY_WHEN_ASKED)
    alone = start(tiny("nobody-looks", *long))
    run = start(tiny("gone", *long, nodes=2, namespace=GONE))
    alone.reaches(7)
    run.reaches(7)
    with no_operator():
        alone.delete("--wait=false")
        kubectl("delete", "namespace", GONE, "--wait=false")
        until("the run's pods are gone", lambda: not alone.pods(), 60)
        assert saved_step(alone) >= 7
        until("the namespace is gone", lambda: get("namespace", GONE) is None, 60)
        kept = saved_step(run)
        assert kept == saved_step(run, 1)
        assert kept >= 7


def test_a_running_run_as_its_people_see_it(start: Start) -> None:
    """Its Events, each once; its coordinator apart from its workers; workers find each other by name."""
    run = start(tiny("seen", "--steps", 5000, "--pause", 0.1, nodes=2))
    run.reaches(5)
    about = f"involvedObject.uid={run.uid}"
    events = json.loads(kubectl("get", "events", "-n", run.namespace, "--field-selector", about, "-o", "json"))["items"]
    told = [(event["reason"], event["message"]) for event in events]
    assert told, "kubectl describe has something to say"
    assert len(set(told)) == len(told), "each is told once"
    workers = run.pods()
    (coordinator,) = run.pods(labels.COORDINATOR)
    assert coordinator["spec"]["nodeName"] not in {pod["spec"]["nodeName"] for pod in workers}
    name, service = workers[1]["spec"]["hostname"], workers[1]["spec"]["subdomain"]
    there = run.execute(workers[0], f"import socket; print(socket.gethostbyname('{name}.{service}'))")
    assert there.strip() == workers[1]["status"]["podIP"]


def test_the_deadline_saves_and_fails_the_run(start: Start) -> None:
    run = start(tiny("deadline", "--steps", 5000, "--pause", 0.1, *ONLY_WHEN_ASKED, activeDeadlineSeconds=600))
    run.reaches(3)
    run.patch(activeDeadlineSeconds=1)  # it may change on a running run
    status = run.phase("Failed")
    assert status["reason"] == "DeadlineExceeded"
    assert status["lastCheckpoint"]["step"] == saved_step(run)


def test_the_time_to_live_deletes_a_finished_run(start: Start) -> None:
    run = start(tiny("ttl", "--steps", 5, ttlSecondsAfterFinished=8))
    run.phase("Succeeded")
    until("the run is gone", lambda: get("trainingrun", run.name, run.namespace) is None, 60)
    assert store.objects(run.prefix), "checkpoints stay"


def test_clean_pod_policy_all_removes_the_pods_of_a_finished_run(start: Start) -> None:
    kept = start(tiny("keep-pods", "--steps", 5))
    cleaned = start(tiny("clean-pods", "--steps", 5, cleanPodPolicy="All"))
    kept.phase("Succeeded")
    cleaned.phase("Succeeded")
    until("its pods are gone", lambda: not cleaned.pods(), 60)
    assert "has done 5 steps" in kept.logs()


def older(crd: Object | None) -> None:
    """What an earlier chart has installed: the kind without its columns."""
    assert crd is not None
    metadata = {key: crd["metadata"][key] for key in ("name", "labels", "annotations")}
    before = {"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": metadata, "spec": crd["spec"]}
    del before["spec"]["versions"][0]["additionalPrinterColumns"]
    apply(before, arguments=("--server-side", "--force-conflicts", "--field-manager=helm"))


@pytest.mark.serial
def test_helm_upgrade_under_a_running_run(start: Start, helm: Callable[..., str]) -> None:
    """The CRD is brought up to date and the operator's pods are replaced; not one of the run's is."""
    run = start(tiny("upgrade", "--steps", 5000, "--pause", 0.1, nodes=2))
    status = run.reaches(3)
    before = [pod["metadata"]["uid"] for pod in run.pods()]
    older(get("crd", "trainingruns.everstep.dev"))
    assert "PHASE" not in kubectl("get", "trainingruns", "-n", run.namespace)
    annotation = time.strftime("%Y-%m-%dT%H-%M-%S")
    helm(
        *("upgrade", RELEASE, CHART, "-n", SYSTEM, "--reuse-values"),
        *("--set", f"podAnnotations.upgraded={annotation}"),
    )
    kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=120s", timeout=130)
    until("the CRD is the chart's", lambda: "PHASE" in kubectl("get", "trainingruns", "-n", run.namespace), 30)
    run.reaches(status["progress"]["step"] + 20)
    assert [pod["metadata"]["uid"] for pod in run.pods()] == before
    assert run.status["restarts"]["total"] == 0


@pytest.mark.serial
def test_uninstall_leaves_runs_alive_and_a_new_install_adopts_them(start: Start, helm: Callable[..., str]) -> None:
    run = start(tiny("uninstall", "--steps", 400, "--pause", 0.1))
    run.reaches(3)
    values = helm("get", "values", RELEASE, "-n", SYSTEM, "-o", "yaml")
    helm("uninstall", RELEASE, "-n", SYSTEM, "--wait")
    assert get("crd", "trainingruns.everstep.dev") is not None
    kubectl("delete", "lease", RELEASE, "-n", SYSTEM)  # the operator's own; the next one makes it anew
    assert run.pod(0)["status"]["phase"] == "Running"
    with_values = ROOT / "build" / "cluster-values.yaml"
    with_values.parent.mkdir(exist_ok=True)
    with_values.write_text(values)
    helm("install", RELEASE, CHART, "-n", SYSTEM, "-f", str(with_values))
    status = run.phase("Succeeded", "Failed", seconds=180)
    assert status["phase"] == "Succeeded", run.picture()
    assert status["restarts"]["total"] == 0
    assert len(run.pods()) == 1


@pytest.mark.serial
def test_install_by_plain_kubectl(start: Start) -> None:
    """As the README says, but for the CRD, which is the release's here."""
    system = "everstep-system"
    text = (ROOT / "deploy" / "everstep.yaml").read_text()
    for name, variable in zip(("operator", "runtime"), IMAGES, strict=False):
        text = re.sub(rf"registry\.invalid/everstep/{name}:[\w.]+", os.environ[variable], text)
    objects = [o for o in yaml.safe_load_all(text) if o and o["kind"] != "CustomResourceDefinition"]
    with no_operator():
        try:
            apply(*(o for o in objects if o["kind"] == "Namespace"), arguments=("--server-side",))
            key = f"--from-literal=key={secrets.token_hex(32)}"
            kubectl("create", "secret", "generic", "everstep-token-key", "-n", system, key)
            apply(*objects, arguments=("--server-side",))
            kubectl("rollout", "status", "deployment/everstep", "-n", system, "--timeout=90s")
            assert start(tiny("plain", "--steps", 10)).phase("Succeeded")["progress"]["step"] == 10
        finally:
            kubectl("delete", "-f", "-", "--ignore-not-found", stdin=yaml.safe_dump_all(reversed(objects)))
