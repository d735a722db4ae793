"""Seconds on a real cluster: from `kubectl apply` to the first training step, and from a fault to the new process.

    make cluster-test        # it leaves the operator and the store of its tests in the cluster
    eval $(python tests/cluster/provision.py env)
    python benchmarks/cluster_recovery.py --rounds 3

The run has three nodes with one rank each (torch, gloo, checkpoints in S3), from images that the nodes have. "New
process running" is the first line of the script in the place of the one that is gone, "training again" its first
finished step; the script itself tells of both, by this machine's clock. When Kubernetes notices the death of a node is
a setting of the cluster (node-monitor-grace-period).
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # at the end: operator/ must not stand in front of the standard library's

from tests.cluster import faults as accidents  # noqa: E402
from tests.cluster import store  # noqa: E402
from tests.cluster.kube import KubectlFailed, get, kubectl, until  # noqa: E402
from tests.cluster.runs import NAMESPACE, SESSION, STORE, Run, node_of, run  # noqa: E402

SCRIPT = Path(__file__).parent / "scripts" / "marks.py"
NODES = 3
KILL = """
import os, signal, time
for folder in filter(str.isdigit, os.listdir("/proc")):
    try:
        environment = open(f"/proc/{folder}/environ", "rb").read().split(b"\\0")
    except OSError:
        continue
    if b"RANK=1" in environment:
        print(time.time())
        os.kill(int(folder), signal.SIGKILL)
        break
"""

Marks = dict[str, float]


def begin(name: str) -> tuple[Run, float]:
    """A run that was applied, and when that began."""
    trainer = {
        "command": ["python", "marks.py"],
        "code": {"files": [{"path": "marks.py", "content": SCRIPT.read_text()}]},
    }
    manifest = run(f"{name}-{SESSION}", trainer, nodes=NODES, failurePolicy={"node": {"graceSeconds": 1}})
    began = time.time()
    return Run(manifest), began


def marks(of: Run, node: int, after: float) -> Marks:
    """What the newest script of a node has said since then."""
    try:
        lines = [line.split()[-3:] for line in of.logs(node).splitlines() if " mark " in f" {line}"]
    except (IndexError, KubectlFailed):  # no pod, or its container has not begun
        return {}
    told = {what: float(at) for _, what, at in lines if float(at) > after}
    return told if "began" in told else {}


def steps_again(of: Run, after: float, nodes: tuple[int, ...] = tuple(range(NODES))) -> list[Marks]:
    """Wait until the scripts of these nodes have begun after that moment, and done a step."""

    def look() -> list[Marks] | None:
        told = [marks(of, node, after) for node in nodes]
        return told if all("step" in each for each in told) else None

    return until(f"{of.name} trains", look, 180, every=0.2)


def worker_killed(of: Run) -> float:
    return float(of.execute(of.pod(1), KILL).split()[0])


def pod_deleted(of: Run) -> float:
    at = time.time()
    kubectl("delete", "pod", of.pod(1)["metadata"]["name"], "-n", of.namespace, "--wait=false")
    return at


def node_killed(of: Run) -> float:
    faults = accidents.from_environment()
    assert faults is not None, "EVERSTEP_FAULTS is not set: this cluster is not ours to break"
    at = time.time()
    faults.kill_node(node_of(of.pod(1)))
    return at


def started(round: int) -> tuple[Run, dict[str, float]]:
    """A run that trains, and how it came to that: seconds from the apply."""
    of, began = begin(f"bench-{round}")
    table = {}
    until("all pods are there", lambda: len(of.pods()) == NODES, 60, every=0.05)
    table["pods created"] = time.time() - began
    until("all run", lambda: [p["status"]["phase"] for p in of.pods()] == ["Running"] * NODES, 120, every=0.05)
    table["all running"] = time.time() - began
    told = steps_again(of, began)
    for what, words in (("began", "script's first line"), ("imported", "torch and everstep imported")):
        table[words] = max(each[what] for each in told) - began
    table["first step"] = max(each["step"] for each in told) - began
    return of, table


def broken(of: Run, fault: Callable[[Run], float]) -> dict[str, float]:
    """Seconds from the fault."""
    until("a checkpoint is there", lambda: of.status.get("lastCheckpoint"), 60)
    at = fault(of)
    (told,) = steps_again(of, at, nodes=(1,))
    return {"new process running": told["began"] - at, "training again": told["step"] - at}


def print_table(title: str, rows: list[dict[str, float]]) -> None:
    print(f"\n{title}")
    for what in rows[0]:
        seconds = [row[what] for row in rows]
        print(f"  {what:<28} {median(seconds):6.1f}   ({min(seconds):.1f} to {max(seconds):.1f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    store.start()
    kubectl("rollout", "status", "deployment/everstep", "-n", "everstep-test-system", "--timeout=60s")
    the_store = get("pod", "s3", STORE)
    assert the_store is not None
    spared = node_of(the_store)
    kubectl("cordon", spared)  # a node with a worker is killed, and the store goes on
    try:
        applied, faults = [], {fault: [] for fault in (worker_killed, pod_deleted, node_killed)}
        for round in range(arguments.rounds):
            of, table = started(round)
            applied.append(table)
            for fault, rows in faults.items():
                lost = node_of(of.pod(1))
                rows.append(broken(of, fault))
            accidents.from_environment().start_node(lost)
            of.delete("--wait=false")
            kubectl("wait", "node", lost, "--for=condition=Ready", "--timeout=120s", timeout=130)
    finally:
        kubectl("uncordon", spared)
    print(f"seconds: median of {arguments.rounds} (least to most); {NODES} nodes, {NAMESPACE}")
    print_table("from kubectl apply to", applied)
    for fault, rows in faults.items():
        print_table(f"from {fault.__name__.replace('_', ' ')} to", rows)


if __name__ == "__main__":
    main()
