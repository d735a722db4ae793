"""The cluster, the chart on it, the store in it: once for all tests, whichever worker process comes first."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everstep_protocol import labels
from tests.cluster import faults as accidents
from tests.cluster import store
from tests.cluster.kube import Object, apply, get, kubectl
from tests.cluster.runs import GONE, NAMESPACE, QUOTA, SESSION, STORE, Run

ROOT = Path(__file__).parents[2]
CHART = str(ROOT / "charts" / "everstep")
SYSTEM = "everstep-test-system"
RELEASE = "everstep"

#: When the tests began, in seconds since the epoch: all sessions of one `make cluster-test`.
BEGAN = float(os.environ.get("EVERSTEP_TESTS_BEGAN") or time.time())

IMAGES = ("EVERSTEP_OPERATOR_IMAGE", "EVERSTEP_RUNTIME_IMAGE", "EVERSTEP_S3_IMAGE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what needs no operator, and has the cluster for itself; last what looks back at all that ours did."""
    ours = [item for item in items if "operator" in getattr(item, "fixturenames", ())]
    items.sort(key=lambda item: (item in ours) + ("tests/cluster/test_rbac" in item.nodeid))


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"everstep-test-{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def cluster() -> None:
    """A Kubernetes to test on."""
    missing = [name for name in ("KUBECONFIG", *IMAGES) if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster: {', '.join(missing)} not set; make cluster-test sets them")


@pytest.fixture(scope="session")
def trainingruns(helm: Callable[..., str], cluster: None) -> None:
    """The kind is known, and there may be no operator: brought by the chart."""
    with one_at_a_time("operator"):
        crd = get("crd", "trainingruns.everstep.dev")
        if crd is None or "meta.helm.sh/release-name" not in crd["metadata"].get("annotations", {}):
            namespace(SYSTEM)
            over = ("--take-ownership", "--force-conflicts") if crd else ()  # somebody has tried it with kubectl
            values = chart_values(replicas="0")
            helm("upgrade", "--install", RELEASE, CHART, "--namespace", SYSTEM, *values, *over)
    kubectl("wait", "crd", "trainingruns.everstep.dev", "--for=condition=Established", "--timeout=30s")


@pytest.fixture(scope="session")
def helm() -> Callable[..., str]:
    """Call helm; what it printed."""
    command = [sys.executable, ROOT / "deploy" / "helm.py"]
    program = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()

    def call(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    return call


def chart_values(**values: str) -> list[str]:
    """Arguments for helm: the images under test."""
    operator, runtime = (os.environ[name].rpartition(":") for name in IMAGES[:2])
    settings = {
        "image.repository": operator[0],
        "image.tag": operator[2],
        "runtimeImage.repository": runtime[0],
        "runtimeImage.tag": runtime[2],
        "podAnnotations.session": SESSION,  # an image of the same name may be another one than last time
    } | values
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="session")
def operator(helm: Callable[..., str], trainingruns: None, the_store: None) -> None:
    """The operator, by the chart, two replicas.

    EVERSTEP_TEST_SCOPE=namespaces: it acts in those of the tests only, and leaves others who share the cluster alone.
    """
    with one_at_a_time("operator"):
        namespace(SYSTEM)
        scope = {}
        if os.environ.get("EVERSTEP_TEST_SCOPE") == "namespaces":
            scope = {f"namespaces[{i}]": name for i, name in enumerate((NAMESPACE, QUOTA, GONE))}
        values = chart_values(**scope)
        helm("upgrade", "--install", RELEASE, CHART, "--namespace", SYSTEM, *values)
        kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, "--timeout=120s", timeout=130)


@pytest.fixture(scope="session")
def the_store(cluster: None) -> None:
    """A real S3 server in the cluster, and the namespaces with its credentials."""
    with one_at_a_time("store"):
        for name in (STORE, NAMESPACE, QUOTA, GONE):
            namespace(name)
            if name != STORE:
                apply(store.credentials(name))
        store.start()


def namespace(name: str) -> None:
    """One in which the restricted Pod Security Standard holds."""
    metadata = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


@pytest.fixture
def start(operator: None) -> Iterator[Callable[[Object], Run]]:
    """Apply a TrainingRun; it is deleted when the test is over."""
    started: list[Run] = []

    def apply_it(manifest: Object) -> Run:
        started.append(Run(manifest))
        return started[-1]

    yield apply_it
    for run in started:
        run.delete("--wait=false")
        pods = ("pods", "-n", run.namespace, "-l", f"{labels.RUN_UID}={run.uid}")
        kubectl("delete", *pods, "--force", "--wait=false")


@pytest.fixture
def faults(cluster: None) -> accidents.Faults:
    found = accidents.from_environment()
    if found is None:
        pytest.skip("this cluster is not ours to break: EVERSTEP_FAULTS says kind or namespaces where it is")
    return found
