"""Accidents, one after the other: what happens to the run, to its pods, and what never happens."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from everstep_protocol import labels
from tests.cluster import store
from tests.cluster.conftest import RELEASE, SYSTEM
from tests.cluster.faults import Faults, api_server_away, audit, live_ranks, log, signal_container
from tests.cluster.kube import KubectlFailed, Object, get, kubectl, listed, until
from tests.cluster.runs import ONLY_WHEN_ASKED, SESSION, STORE, Run, node_of, tiny
from tests.cluster.runs import run as a_run

#: Those that break a node, the API server or the operator have the cluster for themselves: they are `serial`.
pytestmark = pytest.mark.cluster

Start = Callable[[Object], Run]

#: A node that is not Ready is given up soon.
IMPATIENT = {"node": {"graceSeconds": 1}}

#: A label of nodes.
PLACE = "everstep.test/place"

OPERATOR = "app.kubernetes.io/component=operator"

KILL_RANK = """
import os, signal
from pathlib import Path
for folder in Path("/proc").glob("[0-9]*"):
    try:
        environment = (folder / "environ").read_bytes().split(b"\\0")
    except OSError:
        continue
    if b"RANK=%d" in environment:
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed", folder.name)
        break
"""


def kill_rank(run: Run, rank: int) -> None:
    """One rank per node: SIGKILL, from a shell in its container."""
    assert "killed" in run.execute(run.pod(rank), KILL_RANK % rank)


def long(name: str, *more: object, steps: int = 6000, **spec: object) -> Object:
    """Two nodes that take ten steps a second."""
    return tiny(name, "--steps", steps, "--pause", 0.1, *more, nodes=2, **spec)


def training(start: Start, name: str, *more: object, **spec: object) -> Run:
    """A run that takes ten minutes, and is at it."""
    run = start(long(name, *more, **spec))
    run.reaches(5)
    return run


def uids(run: Run) -> list[str]:
    return [pod["metadata"]["uid"] for pod in run.pods()]


def live(run: Run, node: int) -> list[Object]:
    """Pods for a node index that are not on their way out."""
    return [
        pod
        for pod in run.pods()
        if pod["metadata"]["labels"][labels.NODE] == str(node)
        and pod["status"]["phase"] in ("Pending", "Running")
        and not pod["metadata"].get("deletionTimestamp")
    ]


def replaced(run: Run, pod: Object, seconds: float = 60) -> Object:
    """Wait until another pod runs in its place."""
    node = int(pod["metadata"]["labels"][labels.NODE])

    def look() -> Object | None:
        pods = [p for p in live(run, node) if p["metadata"]["uid"] != pod["metadata"]["uid"]]
        return next((p for p in pods if p["status"]["phase"] == "Running"), None)

    return until(f"another pod of {run.name} is in the place of {pod['metadata']['name']}", look, seconds)


def goes_on(run: Run, steps: int = 10, seconds: float = 90) -> Object:
    """Wait until it trains, and has come further than now; the status then."""
    goal = run.step + steps

    def look() -> Object | None:
        status = run.status
        further = (status.get("progress") or {}).get("step", 0) >= goal
        return status if further and status["phase"] == "Running" else None

    try:
        return until(f"{run.name} trains beyond step {goal}", look, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{run.picture()}") from None


def test_worker_killed(start: Start) -> None:
    run = training(start, "worker-killed")
    before = uids(run)
    kill_rank(run, 1)
    until("the restart is counted", lambda: run.status["restarts"]["total"] == 1)
    status = goes_on(run)
    assert status["phase"] == "Running"
    assert status["restarts"] == {**status["restarts"], "total": 1, "byCause": {"Killed": 1}}
    failure = status["attempts"][-1]
    assert (failure["rank"], failure["node"], failure["signal"]) == (1, 1, 9)
    assert failure["nodeName"] == node_of(run.pod(1))
    assert status["resumedFrom"]["step"] > 0, "its work was not lost"
    assert uids(run) == before, "its pods are fine"


def test_pod_deleted(start: Start) -> None:
    """With its grace: all save at one step, another pod comes and no other, nothing is counted."""
    run = training(start, "pod-deleted", *ONLY_WHEN_ASKED)
    pod, other = run.pod(1), run.pod(0)
    kubectl("delete", "pod", pod["metadata"]["name"], "-n", run.namespace, "--wait=false")
    replaced(run, pod)
    status = goes_on(run)
    assert status["restarts"]["total"] == 0
    assert status["resumedFrom"]["step"] >= 5
    assert run.pod(0)["metadata"]["uid"] == other["metadata"]["uid"]


def test_pod_killed(start: Start) -> None:
    run = training(start, "pod-killed")
    pod = run.pod(1)
    kubectl("delete", "pod", pod["metadata"]["name"], "-n", run.namespace, "--force", "--grace-period=0")
    replaced(run, pod)
    status = goes_on(run)
    assert status["restarts"]["total"] <= 1
    assert len(live(run, 1)) == 1


def test_coordinator_killed(start: Start) -> None:
    """Training does not notice."""
    run = training(start, "coordinator")
    before, status = uids(run), run.status
    (coordinator,) = run.pods(labels.COORDINATOR)
    kubectl("delete", "pod", coordinator["metadata"]["name"], "-n", run.namespace, "--force", "--grace-period=0")
    until(
        "there is another coordinator",
        lambda: [
            pod
            for pod in run.pods(labels.COORDINATOR)
            if pod["metadata"]["uid"] != coordinator["metadata"]["uid"] and pod["status"]["phase"] == "Running"
        ],
    )
    after = goes_on(run, 30)
    assert uids(run) == before
    assert after["generation"] == status["generation"]
    assert after["restarts"]["total"] == 0


@contextmanager
def cordoned(node: str) -> Iterator[None]:
    kubectl("cordon", node)
    try:
        yield
    finally:
        kubectl("uncordon", node)


@contextmanager
def back(action: Callable[[str], None], node: str) -> Iterator[None]:
    """Whatever the test finds, the node is well again for the next."""
    try:
        yield
    finally:
        action(node)
        kubectl("wait", "node", node, "--for=condition=Ready", "--timeout=120s", timeout=130)


def away_from_the_store(start: Start, manifest: Object) -> tuple[Run, Object]:
    """A run with its two workers on nodes that may be broken: not the store's. And its worker 1."""
    pod = get("pod", "s3", STORE)
    assert pod is not None
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {labels.RUN: manifest["metadata"]["name"], labels.ROLE: labels.WORKER}},
    }
    manifest["spec"]["podTemplate"] = {"spec": {"topologySpreadConstraints": [spread]}}
    with cordoned(node_of(pod)):
        run = start(manifest)
        run.reaches(5)
        victim = run.pod(1)
        assert node_of(victim) != node_of(pod)
        return run, victim


@pytest.mark.serial
def test_drain_of_a_fixed_size_run(start: Start) -> None:
    """It saves and moves. That is no failure."""
    run, pod = away_from_the_store(start, long("drain", *ONLY_WHEN_ASKED))
    node = node_of(pod)
    with back(lambda name: kubectl("uncordon", name) and None, node):  # type: ignore[func-returns-value]
        kubectl(
            *("drain", node, f"--pod-selector={labels.RUN_UID}={run.uid}", "--delete-emptydir-data", "--force"),
            timeout=120,
        )
        moved = replaced(run, pod)
        assert node_of(moved) != node
        status = goes_on(run)
        assert status["restarts"]["total"] == 0
        assert status["resumedFrom"]["step"] >= 5


@pytest.mark.serial
def test_node_killed(start: Start, faults: Faults) -> None:
    """A pod elsewhere in its place; neither that nor the run's end waits for what a dead kubelet does not confirm."""
    run, pod = away_from_the_store(start, long("node-killed", steps=500, failurePolicy=IMPATIENT))
    node = node_of(pod)
    with back(faults.start_node, node):
        faults.kill_node(node)
        moved = replaced(run, pod, 120)
        assert node_of(moved) != node
        uid = pod["metadata"]["uid"]
        until("the zombie is gone", lambda: uid not in uids(run), 30)
        status = goes_on(run)
        assert status["phase"] == "Running"
        assert status["resumedFrom"]["step"] > 0
        assert status["restarts"]["total"] <= 1
        assert [excluded["name"] for excluded in status["excludedNodes"]] == [node]
        assert run.phase("Succeeded", "Failed", seconds=180)["phase"] == "Succeeded", run.picture()


@pytest.mark.serial
def test_partition_never_two_live_processes_of_one_rank(start: Start, faults: Faults) -> None:
    """Ranks that meet in every step, as those of a training do: that is how one that is cut off knows it."""
    endless = {"command": ["python", "train.py"], "args": ["--epochs", "100000", "--workers", "0"]}
    manifest = a_run(f"partition-{SESSION}", endless, nodes=2, failurePolicy=IMPATIENT)
    manifest["spec"]["checkpoint"]["every"] = {"steps": 500}
    run, pod = away_from_the_store(start, manifest)
    node = node_of(pod)
    with back(faults.heal, node):
        assert live_ranks(faults, pod) == 1, "the test sees the worker"
        faults.partition(node)
        moved = replaced(run, pod, 150)
        assert live_ranks(faults, pod) == 0, "the one that was cut off had ended before"
        assert node_of(moved) != node
        assert goes_on(run)["phase"] == "Running"
    until("one pod for that place is left", lambda: [p["metadata"]["uid"] for p in live(run, 1)], 30)
    assert [p["metadata"]["uid"] for p in live(run, 1)] == [moved["metadata"]["uid"]]


@pytest.mark.serial
def test_api_server_down_for_a_minute(start: Start, faults: Faults) -> None:
    """Training does not notice; the status catches up."""
    run = training(start, "api-down", "--say", 10)
    pods, before, status = run.pods(), uids(run), run.status

    def steps() -> list[int]:
        """Of both nodes, as they say there: the status tells nothing during the outage, and much after it."""
        return [int(re.findall(r"has taken step (\d+)", log(faults, pod))[-1]) for pod in pods]

    until("both have said a step", lambda: all("has taken step" in log(faults, pod) for pod in pods))
    with api_server_away(faults):
        began = steps()
        time.sleep(60)  # the outage itself
        ended = steps()
    # Ten a second, and half of that on a busy machine.
    assert all(end >= begin + 300 for begin, end in zip(began, ended, strict=True)), (began, ended)
    after = run.reaches(max(ended), 90)
    assert after["phase"] == "Running"
    assert after["generation"] == status["generation"]
    assert after["restarts"]["total"] == 0
    assert uids(run) == before


@pytest.mark.serial
def test_pod_deleted_right_after_an_api_outage(start: Start, faults: Faults) -> None:
    run = training(start, "after-outage")
    with api_server_away(faults):
        time.sleep(15)  # the outage itself
    pod = until("kubectl sees the pod", lambda: run.pod(1), 60)
    deleted = time.time()
    kubectl("delete", "pod", pod["metadata"]["name"], "-n", run.namespace, "--force", "--grace-period=0")
    replaced(run, pod, 90)
    # One: the nodes are NotReady for a while after an outage, and nothing else of the run is replaced for that.
    (made,) = [event for event in changes_of_pods(run, faults, deleted) if event["verb"] == "create"]
    waited = datetime.fromisoformat(made["requestReceivedTimestamp"]).timestamp() - deleted
    # Its own connections come back after up to half a minute, as the kubelets' do.
    assert waited < 50, "others need 50 to 100 s; how long a kubelet then takes is not the operator's affair"
    assert goes_on(run)["phase"] == "Running"


def operators() -> list[Object]:
    return listed("pods", SYSTEM, OPERATOR)


def leader() -> Object | None:
    lease = get("lease", RELEASE, SYSTEM)
    holder = ((lease or {}).get("spec") or {}).get("holderIdentity") or ""
    return next((pod for pod in operators() if holder.startswith(pod["metadata"]["name"])), None)


def changes_of_pods(run: Run, faults: Faults, since: float) -> list[Object]:
    """From the audit log: which pods of a run operators made and deleted, and which operator did."""
    account = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
    return [
        event
        for event in audit(faults, since)
        if event["user"]["username"] == account
        and event.get("objectRef", {}).get("resource") == "pods"
        and event["objectRef"].get("name", "").startswith(f"{run.name}-")
        and event["verb"] in ("create", "delete")
        and event["responseStatus"]["code"] < 300
    ]


def assert_none_was_made_twice(changes: list[Object]) -> None:
    made = Counter(event["objectRef"]["name"] for event in changes if event["verb"] == "create")
    assert all(count == 1 for count in made.values()), made


@pytest.mark.serial
def test_operator_killed_fifty_times_during_restarts(start: Start, faults: Faults) -> None:
    """By SIGKILL, as a kernel short of memory does it: no Lease is given back, nothing is closed."""
    run = training(start, "fifty", failurePolicy={"maxRestarts": 5, "backoff": {"initialSeconds": 0}})
    before, since = uids(run), time.time()
    dice, kills = random.Random(50), 0
    while kills < 50:
        assert time.time() < since + 450, f"{kills} kills so far"
        victims = [pod for pod in operators() if not pod["metadata"].get("deletionTimestamp")]
        leads = leader() if kills % 2 else None  # every second time the one that acts
        victim = leads or (dice.choice(victims) if victims else None)
        if victim is not None and signal_container(faults, victim, "KILL", "everstep"):
            kills += 1
            # Another in its place: a kubelet waits longer and longer before it starts the same container again.
            kubectl("delete", "pod", victim["metadata"]["name"], "-n", SYSTEM, "--ignore-not-found", "--wait=false")
            if kills % 16 == 8:
                kill_rank(run, kills // 16 % 2)
        time.sleep(1.0)  # between two accidents
    kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=120s", timeout=130)
    until("all three are counted", lambda: run.status["restarts"]["total"] == 3, 60)
    status = goes_on(run)
    assert status["restarts"]["total"] == 3
    assert uids(run) == before, "a restart of workers replaces no pod, and neither does an operator"
    changes = changes_of_pods(run, faults, since)
    assert_none_was_made_twice(changes)
    assert not [event for event in changes if event["verb"] == "delete"], "all of its pods were healthy"


@pytest.mark.serial
def test_leader_stopped_for_thirty_seconds(start: Start, faults: Faults) -> None:
    """Another leads; when the first wakes up with what it knew half a minute ago, it does nothing with it."""
    run = training(start, "stopped-leader")
    first = until("somebody leads", leader)
    since = time.time()
    pod = run.pod(1)
    assert signal_container(faults, first, "STOP", "everstep") > 0
    try:
        kubectl("delete", "pod", pod["metadata"]["name"], "-n", run.namespace, "--force", "--grace-period=0")
        replaced(run, pod, 60)
        time.sleep(max(0.0, since + 30 - time.time()))
    finally:
        signal_container(faults, first, "CONT", "everstep")
    status = goes_on(run, 50)
    second = leader()
    assert second is not None
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert len(live(run, 0)) == len(live(run, 1)) == 1
    assert status["restarts"]["total"] <= 1
    changes = changes_of_pods(run, faults, since)
    assert_none_was_made_twice(changes)
    actors = {event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0] for event in changes}
    assert actors == {second["metadata"]["name"]}, "only the new leader acted"


@pytest.mark.serial
def test_a_lost_worker_that_is_not_replaced_is_no_success(start: Start, faults: Faults) -> None:
    """Nowhere to go for the pod of a dead node: the run waits and says so, and is not Succeeded meanwhile."""
    pod = get("pod", "s3", STORE)
    assert pod is not None
    places = [name for node in listed("nodes", "default") if (name := node["metadata"]["name"]) != node_of(pod)][:2]
    manifest = long("nowhere", steps=400, failurePolicy={"node": {"graceSeconds": 1, "excludeSeconds": 30}})
    workers = {"matchLabels": {labels.RUN: manifest["metadata"]["name"], labels.ROLE: labels.WORKER}}
    apart = [{"topologyKey": "kubernetes.io/hostname", "labelSelector": workers}]
    manifest["spec"]["podTemplate"] = {
        "spec": {
            "nodeSelector": {PLACE: "yes"},
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart}},
        }
    }
    with labelled(places):
        run = start(manifest)
        run.reaches(5)
        victim = run.pod(1)
        with back(faults.start_node, node_of(victim)):
            faults.kill_node(node_of(victim))
            until("it waits for a node", lambda: "nodes are available" in run.status.get("message", ""), 120)
            time.sleep(5)  # and waits on
            assert run.status["phase"] in ("Restarting", "Pending")
        status = run.phase("Succeeded", "Failed", seconds=180)
    assert status["phase"] == "Succeeded", run.picture()
    assert store.content(f"{run.prefix}rank1.json").strip() == "400", "the worker in its place did the work"


@contextmanager
def labelled(nodes: list[str]) -> Iterator[None]:
    """Places for a run that may go nowhere else."""
    kubectl("label", "nodes", *nodes, f"{PLACE}=yes", "--overwrite")
    try:
        yield
    finally:
        kubectl("label", "nodes", *nodes, f"{PLACE}-")


def test_what_the_store_holds_is_what_the_status_says(start: Start) -> None:
    """The status names the newest checkpoint; it is there."""
    run = start(tiny("store", "--steps", 40))
    status = run.phase("Succeeded")
    assert status["lastCheckpoint"]["step"] == 40
    assert store.content(f"{run.prefix}rank0.json").strip() == "40"
    with pytest.raises(KubectlFailed):
        store.content(f"{run.prefix}rank1.json")


@pytest.mark.serial
def test_devices_that_fall_ill(start: Start, faults: Faults) -> None:
    """Kubernetes offers them to nobody; the run says so, and begins as soon as enough of them are well."""
    nodes = [n["metadata"]["name"] for n in listed("nodes", "default") if "nvidia.com/gpu" in n["status"]["capacity"]]
    if not nodes:
        pytest.skip("no node offers nvidia.com/gpu; a device plugin without devices will do")
    for node in nodes:
        faults.devices(node, well=False)
    try:
        until("no device is offered", lambda: not any(gpus(node) for node in nodes))
        wants = start(tiny("ill-devices", "--steps", 10, accelerator={"type": "cuda", "count": 2}))
        until("the run says what it lacks", lambda: "nvidia.com/gpu" in wants.status.get("message", ""))
        assert (wants.status["phase"], wants.status["reason"]) == ("Pending", "Unschedulable")
    finally:
        for node in nodes:
            faults.devices(node, well=True)
    assert wants.phase("Succeeded")["restarts"]["total"] == 0


def gpus(node: str) -> int:
    """How many devices it offers."""
    found = get("node", node)
    assert found is not None
    return int(found["status"]["allocatable"].get("nvidia.com/gpu", 0))
