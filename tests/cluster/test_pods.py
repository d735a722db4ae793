"""Rendered pods on a real cluster: its API server takes them, its scheduler places them, their containers run."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster import render
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.cluster.render.tpu import ACCELERATOR_LABEL, NODE_POOL_LABEL, TOPOLOGY_LABEL
from everstep_operator.plan import pods
from tests.cluster import store
from tests.cluster.conftest import IMAGES, namespace
from tests.cluster.kube import KubectlFailed, Object, apply, get, kubectl, listed, until
from tests.cluster.runs import BUCKET, ENDPOINT
from tests.render import golden

pytestmark = pytest.mark.cluster

#: No operator acts here: the pods are the test's own.
NAMESPACE = "everstep-test-pods"
UID = "0b0f1c3e-0000-4000-8000-00000000000{}"


@pytest.fixture(scope="module", autouse=True)
def place(cluster: None) -> Iterator[None]:
    """A namespace that admits only what the restricted Pod Security Standard allows."""
    namespace(NAMESPACE)
    apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer", "namespace": NAMESPACE}})
    yield
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_api_server_takes_what_is_rendered(name: str) -> None:
    objects = golden.GOLDEN[name].render()
    for whole in objects:
        whole["metadata"]["namespace"] = NAMESPACE
    dry = ("--server-side", "--dry-run=server", "--validate=strict", "--field-manager=everstep-test")
    said = kubectl("apply", *dry, "-f", "-", stdin=yaml.safe_dump_all(objects))
    assert said.count("(server dry run)") == len(objects)


def test_namespace_refuses_less() -> None:
    """So that the tests above say something: the standard is enforced here."""
    (pod,) = golden.GOLDEN["cpu"].render()
    pod["metadata"]["namespace"] = NAMESPACE
    del pod["spec"]["securityContext"]["runAsNonRoot"]
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))


# --- pods that run --------------------------------------------------------------------------------------------------


def training_run(name: str, spec: Object) -> TrainingRun:
    metadata = {"name": name, "namespace": NAMESPACE, "uid": UID.format(len(name))}
    trainer = {"command": ["python", "show.py"]} | spec.pop("trainer", {})
    return TrainingRun.model_validate({"metadata": metadata, "spec": {**spec, "trainer": trainer}})


def settings() -> RenderSettings:
    operator, runtime = (os.environ[image] for image in IMAGES[:2])
    return RenderSettings(operator, runtime, image_pull_policy="IfNotPresent")


def worker(run: TrainingRun, node: int, *command: str) -> Object:
    """The pod, as nobody's child: there is no TrainingRun, and what belongs to none is collected."""
    spec = pods.worker(run, node, 1)
    pod = render.pod(run, replace(spec, command=command or spec.command), settings())
    del pod["metadata"]["ownerReferences"]
    return pod


def output_of(run: TrainingRun, *command: str) -> str:
    """What a worker prints until it Succeeds."""
    secret = render.token_secret(run, "token")
    maps = [child for child in render.children(run, settings()) if child["kind"] == "ConfigMap"]
    for companion in (secret, *maps):
        del companion["metadata"]["ownerReferences"]
    pod = worker(run, 0, *command)
    name = pod["metadata"]["name"]
    apply(secret, *maps, pod)
    try:
        until(f"{name} has ended", lambda: phase(name) in ("Succeeded", "Failed"), 90)
        said = kubectl("logs", name, "-n", NAMESPACE, "--all-containers")
        assert phase(name) == "Succeeded", said
        return said
    finally:
        kubectl("delete", "pod", name, "-n", NAMESPACE, "--force", "--wait=false")


def phase(name: str) -> str:
    found = get("pod", name, NAMESPACE)
    return found["status"]["phase"] if found is not None else ""


def test_devices_reach_the_trainer() -> None:
    if not any(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) >= 3 for node in listed("nodes", "default")):
        pytest.skip("no node offers nvidia.com/gpu; a device plugin without devices will do")
    run = training_run("devices", {"accelerator": {"type": "cuda", "count": 3}})
    show = "import os; print('devices', os.environ['NVIDIA_VISIBLE_DEVICES'])"
    said = output_of(run, "python", "-c", show)
    assert len(said.split("devices ")[1].split(",")) == 3


SHOW = """\
import getpass, os, sys, tempfile
import everstep
from lib.part import WORD
print("code", WORD, os.getcwd())
print("everstep", everstep.__file__)
print("user", getpass.getuser(), os.path.expanduser("~"))
open("written", "w").write(tempfile.mkdtemp())
os.makedirs(os.path.expanduser("~/.cache/triton"))
memory = os.statvfs("/dev/shm")
print("shm", memory.f_blocks * memory.f_frsize > 256 << 20)
print("token", os.path.exists("/var/run/secrets/kubernetes.io"))
print("named", os.uname().nodename)
"""
FILES = [{"path": "show.py", "content": SHOW}, {"path": "lib/part.py", "content": "WORD = 'brought'\n"}]
LAUNCH = ("everstep", "launch", "--standalone", "show.py")


def lines(said: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def test_script_finds_its_code_a_home_and_shared_memory() -> None:
    said = lines(output_of(training_run("files", {"trainer": {"code": {"files": FILES}}}), *LAUNCH))
    assert said["code"] == "brought /everstep/code"
    assert said["user"] == "everstep /home/everstep"
    assert said["shm"] == "True"
    assert said["token"] == "False"
    assert said["named"] == "worker-0"


def test_everstep_is_brought_into_an_image() -> None:
    trainer = {"code": {"files": FILES}, "injectEverstep": True}
    # The image has an everstep of its own; that the injected one is found shows that one would do without.
    said = lines(output_of(training_run("injected", {"trainer": trainer}), *LAUNCH))
    assert said["everstep"].startswith("/everstep/packages/")


def test_code_comes_from_an_archive_in_the_store(the_store: None) -> None:
    apply(store.credentials(NAMESPACE))
    store.python(
        f"""
import io, json, os, sys, tarfile
from obstore.store import S3Store
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for file in json.loads({json.dumps(json.dumps(FILES))}):
        data = file["content"].encode()
        info = tarfile.TarInfo("./" + file["path"])
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
endpoint = os.environ["AWS_ENDPOINT_URL"]
S3Store({BUCKET!r}, endpoint=endpoint, client_options={{"allow_http": True}}).put("code/pods.tar.gz", packed.getvalue())
"""
    )
    spec: dict[str, Any] = {
        "trainer": {"code": {"archive": f"s3://{BUCKET}/code/pods.tar.gz"}},
        "checkpoint": {
            "uri": f"s3://{BUCKET}/pods",
            "endpoint": ENDPOINT,
            "region": "us-east-1",
            "credentialsSecret": store.CREDENTIALS,
        },
    }
    assert lines(output_of(training_run("archive", spec), *LAUNCH))["code"] == "brought /everstep/code"


# --- TPU slices -----------------------------------------------------------------------------------------------------

POOLS = ("a", "b", "c")
HOSTS = 4


def tpu_host(pool: str, number: int) -> Object:
    """A node that nobody runs: enough for a scheduler."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"everstep-test-tpu-{pool}-{number}",
            "labels": {
                "everstep-test": "tpu",
                "kubernetes.io/hostname": f"everstep-test-tpu-{pool}-{number}",
                ACCELERATOR_LABEL: "tpu-v6e-slice",
                TOPOLOGY_LABEL: "4x4",
                NODE_POOL_LABEL: f"everstep-test-{pool}",
            },
        },
        "spec": {"taints": [{"key": "google.com/tpu", "value": "present", "effect": "NoSchedule"}]},
    }


def alive() -> Object:
    resources = {"cpu": "64", "memory": "256Gi", "pods": "110", "google.com/tpu": "4"}
    return {
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "nobody is there"}],
        }
    }


@pytest.fixture
def tpu_pools() -> Iterator[list[str]]:
    hosts = [tpu_host(pool, number) for pool in POOLS for number in range(HOSTS)]
    names = [host["metadata"]["name"] for host in hosts]
    apply(*hosts)
    yield names
    kubectl("delete", "pods", "-n", NAMESPACE, "-l", "everstep.dev/tpu-slice", "--force", "--wait=false")
    kubectl("delete", "nodes", "-l", "everstep-test=tpu", "--wait=false")


def keep_alive(names: list[str]) -> None:
    """As a kubelet does it; without, they are given up after half a minute."""
    for name in names:
        kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps(alive()))


def test_tpu_slices_are_placed_whole_and_apart(tpu_pools: list[str]) -> None:
    tpu = {"type": "tpu", "tpu": {"accelerator": "tpu-v6e-slice", "topology": "4x4"}}
    large = training_run("slices", {"numNodes": 2 * HOSTS, "accelerator": tpu})
    small = training_run("slice", {"numNodes": HOSTS, "accelerator": tpu})
    late = training_run("late", {"numNodes": HOSTS, "accelerator": tpu})

    def nodes_of(run: TrainingRun) -> dict[int, str]:
        """By node index; "": waits."""
        keep_alive(tpu_pools)
        found = listed("pods", NAMESPACE, f"everstep.dev/run={run.metadata.name}")
        return {int(p["metadata"]["labels"]["everstep.dev/node"]): p["spec"].get("nodeName", "") for p in found}

    def placed(run: TrainingRun) -> dict[int, str] | None:
        nodes = nodes_of(run)
        return nodes if len(nodes) == run.spec.num_nodes and all(nodes.values()) else None

    keep_alive(tpu_pools)
    where = {}
    for run in (large, small):
        apply(*(worker(run, node) for node in range(run.spec.num_nodes)))
        where |= {(run.metadata.name, n): name for n, name in until("all are placed", lambda: placed(run), 60).items()}  # noqa: B023
    slices = [
        {where["slices", node].rsplit("-", 1)[0] for node in range(HOSTS)},
        {where["slices", node].rsplit("-", 1)[0] for node in range(HOSTS, 2 * HOSTS)},
        {where["slice", node].rsplit("-", 1)[0] for node in range(HOSTS)},
    ]
    assert [len(pools) for pools in slices] == [1, 1, 1]
    assert len(set.union(*slices)) == 3
    assert len(set(where.values())) == 3 * HOSTS  # one pod a host

    apply(*(worker(late, node) for node in range(HOSTS)))
    until("the scheduler has looked at the fourth slice", lambda: unschedulable(late), 30)
    assert not any(nodes_of(late).values())


def unschedulable(run: TrainingRun) -> bool:
    found = listed("pods", NAMESPACE, f"everstep.dev/run={run.metadata.name}")
    reasons = [c.get("reason") for p in found for c in p["status"].get("conditions", []) if c["type"] == "PodScheduled"]
    return reasons == ["Unschedulable"] * HOSTS
