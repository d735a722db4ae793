"""`everstep operator`, the process, against the emulated API. Pods are real processes."""

import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everstep_operator import settings
from everstep_operator.cluster.state import free_ports
from everstep_protocol import labels
from tests.emulated import EmulatedCluster, Fault
from tests.emulated.api import Object, Status
from tests.operator_process.world import manifest

#: A worker that trains nothing for as long as the file is there.
WAITS = "import pathlib, time\nwhile pathlib.Path({!r}).exists(): time.sleep(0.05)"


class Cluster(EmulatedCluster):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.key = folder / "key"
        self.key.write_text("a key of thirty-two secret bytes")
        self.kept = folder / "keep"
        self.kept.touch()
        self.coordinator_port = free_ports(1)[0]
        self.operators: list[Operator] = []

    def operator(self, *namespaces: str) -> "Operator":
        self.operators.append(Operator(self, namespaces or ("team",)))
        return self.operators[-1]

    def start(self, name: str = "first", script: str | None = None, **spec: Any) -> None:
        """A run whose workers wait until `kept` is removed."""
        command = [sys.executable, "-c", script or WAITS.format(str(self.kept))]
        self.create("trainingruns", manifest(name, trainer={"command": command}, **spec))

    def runs(self) -> dict[str, Object]:
        return {item["metadata"]["name"]: item for item in self.api.of("trainingruns")}

    def phase(self, name: str = "first") -> str:
        return str(self.runs()[name].get("status", {}).get("phase", ""))

    def running(self) -> list[str]:
        return sorted(p["metadata"]["name"] for p in self.api.of("pods") if p["status"]["phase"] == "Running")

    def lease(self) -> str:
        leases = self.api.of("leases")
        return str(leases[0]["spec"]["holderIdentity"]) if leases else ""


class Operator:
    def __init__(self, cluster: Cluster, namespaces: tuple[str, ...]) -> None:
        self.port = free_ports(1)[0]
        self.log = cluster.folder / f"operator-{self.port}.log"
        where = ["--kubeconfig", str(cluster.kubeconfig()), "--port", str(self.port)]
        where += [word for namespace in namespaces for word in ("--namespace", namespace)]
        images = ("--operator-image", "operator", "--runtime-image", "runtime")
        key = ("--token-key-file", str(cluster.key))
        command = [sys.executable, "-P", "-m", "everstep.cli", "operator", *where, *images, *key]
        command = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "operator", *command]  # as container runtimes start it
        environment = os.environ | {settings.COORDINATOR_PORT: str(cluster.coordinator_port)}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        return "everstep_leader 1.0" in self.ask("/metrics")[1]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for operator in cluster.operators:
        if operator.process.poll() is None:
            operator.process.kill()
            operator.process.wait()
    cluster.close()


def wait(question: Callable[[], Any], what: str, seconds: float = 100) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return answer


def test_a_run_from_apply_to_its_end(cluster: Cluster) -> None:
    operator = cluster.operator()
    cluster.start(numNodes=2)
    wait(lambda: len(cluster.running()) == 3, operator.log.read_text())
    wait(lambda: operator.ask("/readyz")[0] == 200, "ready")
    assert operator.ask("/healthz") == (200, "ok\n")
    files, most = resource.prlimit(operator.process.pid, resource.RLIMIT_NOFILE)
    assert files == most, "a connection to each coordinator"
    cluster.kept.unlink()
    wait(lambda: cluster.phase() == "Succeeded", operator.log.read_text())
    text = operator.ask("/metrics")[1]
    assert 'everstep_runs{phase="Succeeded"} 1.0' in text
    assert 'everstep_api_requests_total{code="201",resource="pods",verb="create"} 3.0' in text

    assert operator.end() == 0
    assert cluster.lease() == "", "released"
    versions = [item for _, plural, _, item in cluster.api._log if plural == "trainingruns"]
    assert not any(item["metadata"].get("finalizers") or item["metadata"].get("annotations") for item in versions)
    touched = {(method, path.partition("/")[0]) for method, path in cluster.api.writes()}
    assert touched <= {
        ("POST", "pods"),
        ("DELETE", "pods"),
        ("POST", "secrets"),
        ("POST", "events"),
        ("PATCH", "events"),
        ("PUT", "trainingruns"),
        ("PATCH", "services"),
        ("PATCH", "networkpolicies"),
    }
    assert not [path for method, path in cluster.api.requests_made if method == "GET" and path.startswith("secrets")]


def test_a_run_deleted_while_no_operator_is_there_is_gone(cluster: Cluster) -> None:
    operator = cluster.operator()
    cluster.start()
    wait(lambda: len(cluster.running()) == 2, operator.log.read_text())
    operator.end(signal.SIGKILL)
    cluster.do(cluster.api.delete("trainingruns", cluster.runs()["first"], None))
    wait(lambda: not cluster.api.of("pods") and not cluster.runs(), "its pods go with it")


def test_a_restarted_operator_adopts_what_runs_and_touches_nothing(cluster: Cluster) -> None:
    operator = cluster.operator()
    cluster.start(numNodes=2)
    wait(lambda: cluster.phase() == "Starting", operator.log.read_text())
    uids = sorted(pod["metadata"]["uid"] for pod in cluster.api.of("pods"))
    operator.end(signal.SIGKILL)
    cluster.api.requests_made.clear()
    second = cluster.operator()
    wait(second.leads, second.log.read_text())
    wait(lambda: 'everstep_runs{phase="Starting"} 1.0' in second.ask("/metrics")[1], "a full view")
    cluster.kept.unlink()
    wait(lambda: cluster.phase() == "Succeeded", second.log.read_text())
    assert ("POST", "pods") not in cluster.api.writes()
    created = {item["metadata"]["uid"] for _, plural, _, item in cluster.api._log if plural == "pods"}
    assert sorted(created) == uids


def test_a_pod_that_is_deleted_while_no_operator_is_there_is_the_only_one_that_is_replaced(cluster: Cluster) -> None:
    operator = cluster.operator()
    cluster.start(numNodes=2)
    wait(lambda: cluster.phase() == "Starting", operator.log.read_text())
    before = {pod["metadata"]["name"]: pod for pod in cluster.api.of("pods")}
    operator.end(signal.SIGKILL)
    victim = next(name for name in before if name.endswith("-1-1"))
    cluster.do(cluster.api.delete("pods", before[victim], None))
    wait(lambda: victim not in cluster.running(), "it leaves")
    second = cluster.operator()
    wait(lambda: len(cluster.running()) == 3, second.log.read_text())
    replaced = victim.removesuffix("1") + "2"
    assert {pod["metadata"]["name"] for pod in cluster.api.of("pods")} == {*before, replaced} - {victim}
    cluster.kept.unlink()
    wait(lambda: cluster.phase() == "Succeeded", second.log.read_text())
    assert cluster.runs()["first"]["status"]["restarts"]["total"] == 0


def test_the_second_takes_over_and_the_first_when_it_goes_on_writes_nothing(cluster: Cluster) -> None:
    first = cluster.operator()
    wait(first.leads, first.log.read_text())
    second = cluster.operator()
    wait(lambda: second.ask("/readyz")[0] == 200, second.log.read_text())
    cluster.start(numNodes=2)
    wait(lambda: len(cluster.running()) == 3, first.log.read_text())
    first.process.send_signal(signal.SIGSTOP)
    wait(second.leads, second.log.read_text())
    # The second acts; the first wakes up with all it had in mind.
    worker = next(pod for pod in cluster.api.of("pods") if pod["metadata"]["labels"][labels.ROLE] == labels.WORKER)
    cluster.do(cluster.api.delete("pods", worker, {"gracePeriodSeconds": 0}))
    wait(lambda: len(cluster.running()) == 3, second.log.read_text())
    before = len(cluster.api.writes())
    first.process.send_signal(signal.SIGCONT)
    wait(lambda: "no longer leading" in first.log.read_text(), first.log.read_text())
    assert [path for method, path in cluster.api.writes()[before:] if path == "pods"] == []
    names = [pod["metadata"]["name"] for pod in cluster.api.of("pods")]
    assert len(names) == 3
    assert first.ask("/readyz")[0] == 200
    assert not first.leads()


def test_an_api_server_that_is_away_is_waited_for(cluster: Cluster) -> None:
    operator = cluster.operator()
    cluster.start()
    wait(lambda: len(cluster.running()) == 2, operator.log.read_text())
    cluster.api.away = True
    cluster.do(cluster.api.forget_history())
    wait(lambda: "the API server" in operator.log.read_text(), operator.log.read_text())
    cluster.kept.unlink()
    time.sleep(1)
    cluster.api.away = False
    wait(lambda: cluster.phase() == "Succeeded", operator.log.read_text())
    assert operator.process.poll() is None


def test_ready_only_while_its_watch_of_runs_works(cluster: Cluster) -> None:
    """Pods and nodes may be watched as before; runs that are applied now would be seen by nobody."""
    operator = cluster.operator()
    wait(lambda: operator.ask("/readyz")[0] == 200, operator.log.read_text())
    refused = Status(403, "Forbidden", "trainingruns is forbidden: somebody has changed the role")
    cluster.api.faults.append(Fault("GET", "trainingruns", refused, times=1_000_000))
    cluster.do(cluster.api.forget_history())
    wait(lambda: operator.ask("/readyz")[0] == 503, operator.log.read_text())
    assert "trainingruns: HTTP 403" in operator.ask("/readyz")[1]
    assert "trainingruns: HTTP 403" in operator.log.read_text()
    assert operator.ask("/healthz") == (200, "ok\n"), "another process would be refused as well"
    cluster.api.faults.clear()
    wait(lambda: operator.ask("/readyz") == (200, "ok\n"), operator.log.read_text())
    cluster.start()
    wait(lambda: len(cluster.running()) == 2, operator.log.read_text())


def test_a_namespace_that_was_deleted_keeps_no_operator_from_the_others(cluster: Cluster) -> None:
    """Its Role is gone with it, so everything there is refused, also to an operator that begins."""
    refused = Status(403, "Forbidden", "is forbidden: the role is gone")
    for plural in ("pods", "trainingruns"):
        cluster.api.faults.append(Fault("GET", plural, refused, times=1_000_000, namespace="gone"))
    operator = cluster.operator("gone", "team")
    wait(lambda: operator.ask("/readyz")[0] == 200, operator.log.read_text())
    said = operator.ask("/readyz")[1]
    assert said.startswith("ok; but for /api/v1/namespaces/gone/pods: is forbidden: the role is gone")
    cluster.start()
    wait(lambda: len(cluster.running()) == 2, operator.log.read_text())
    metrics = operator.ask("/metrics")[1]
    assert 'everstep_namespace_watched{namespace="gone"} 0.0' in metrics
    assert 'everstep_namespace_watched{namespace="team"} 1.0' in metrics
    assert operator.log.read_text().count("watching /api/v1/namespaces/gone/pods: ") == 1, "told once"
    cluster.api.faults.clear()
    wait(lambda: operator.ask("/readyz") == (200, "ok\n"), "it is there again")
    assert 'everstep_namespace_watched{namespace="gone"} 1.0' in operator.ask("/metrics")[1]


def test_an_operator_that_may_not_watch_anything_is_not_ready(cluster: Cluster) -> None:
    refused = Status(403, "Forbidden", "is forbidden: there is no role")
    cluster.api.faults.append(Fault("GET", "pods", refused, times=1_000_000))
    operator = cluster.operator("one", "team")
    wait(lambda: operator.ask("/readyz")[1].count("there is no role") == 2, operator.log.read_text())
    assert operator.ask("/readyz")[0] == 503


def test_a_run_that_cannot_be_understood_says_why(cluster: Cluster) -> None:
    """Admitted by an API server whose schema is older, or none."""
    operator = cluster.operator()
    cluster.create("trainingruns", manifest("odd", numNodes=0))
    cluster.start("good")
    wait(lambda: cluster.phase("good"), operator.log.read_text())
    status = wait(lambda: cluster.runs()["odd"].get("status"), operator.log.read_text())
    assert status["reason"] == "InvalidSpec"
    assert "numNodes" in status["message"]
    writes = [path for method, path in cluster.api.writes() if path.startswith("trainingruns/odd")]
    assert len(writes) == 1, "said once"


def test_without_a_key_it_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "everstep.cli", "operator", "--operator-image=a", "--runtime-image=b"]
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "--token-key-file" in done.stderr
    missing = str(tmp_path / "absent")
    done = subprocess.run([*command, "--token-key-file", missing], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert missing in done.stderr
    assert "Traceback" not in done.stderr
