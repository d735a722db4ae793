"""What goes wrong on purpose. The tests know only `Faults`; a cluster of kind and one of namespaces bring it about.

Which one it is says EVERSTEP_FAULTS (make cluster-test sets it). Without it, tests that need faults are skipped.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.cluster.kube import KubectlFailed, kubectl


class Faults(Protocol):
    def on_node(self, node: str, script: str) -> str:
        """Run a shell script where the node's processes are; what it printed."""
        ...

    def kill_node(self, node: str) -> None:
        """Power loss."""
        ...

    def start_node(self, node: str) -> None: ...

    def partition(self, node: str) -> None:
        """The network of the node is cut; what runs on it runs on."""
        ...

    def heal(self, node: str) -> None: ...

    def devices(self, node: str, well: bool) -> None:
        """All (fake) accelerators of the node fall ill, or are well again."""
        ...

    def stop_apiserver(self) -> None: ...

    def start_apiserver(self) -> None: ...

    def audit_lines(self) -> Iterator[str]:
        """All that the API server wrote down so far, oldest first."""
        ...


class Namespaces:
    """By the tool that runs a cluster in Linux namespaces (provision.py)."""

    def __init__(self) -> None:
        self.tool = os.environ["EVERSTEP_CLUSTER_TOOL"]

    def _call(self, *arguments: str) -> str:
        done = subprocess.run([self.tool, *arguments], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def on_node(self, node: str, script: str) -> str:
        # The tool lends the node's network and mounts; a signal needs the numbers of the node's processes as well.
        enter = ("nsenter", "--pid=/proc/1/ns/pid")
        return self._call("node", "exec", node, "--", *enter, "sh", "-c", script)

    def kill_node(self, node: str) -> None:
        self._call("node", "kill", node)

    def start_node(self, node: str) -> None:
        self._call("node", "start", node)

    def partition(self, node: str) -> None:
        self._call("node", "partition", node)

    def heal(self, node: str) -> None:
        self._call("node", "heal", node)

    def devices(self, node: str, well: bool) -> None:
        self._call("node", "unhealthy-gpus", node, "none" if well else "all")

    def stop_apiserver(self) -> None:
        self._call("apiserver", "stop")

    def start_apiserver(self) -> None:
        self._call("apiserver", "start")

    def audit_lines(self) -> Iterator[str]:
        log = Path(os.environ["EVERSTEP_AUDIT_LOG"])
        for file in [*sorted(log.parent.glob(f"{log.stem}-*{log.suffix}")), log]:
            with file.open() as lines:
                yield from lines


class Kind:
    """By Docker: a node is a container. Written for those who have it; our own CI has never run it."""

    CONTROL_PLANE = "everstep-control-plane"
    MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml"

    def _docker(self, *arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def on_node(self, node: str, script: str) -> str:
        return self._docker("exec", node, "sh", "-c", script)

    def kill_node(self, node: str) -> None:
        self._docker("kill", node)

    def start_node(self, node: str) -> None:
        self._docker("start", node)

    def partition(self, node: str) -> None:
        self._docker("network", "disconnect", "kind", node)

    def heal(self, node: str) -> None:
        self._docker("network", "connect", "kind", node)

    def devices(self, node: str, well: bool) -> None:
        pytest.skip("nodes of kind have no devices")

    def stop_apiserver(self) -> None:
        self._docker("exec", self.CONTROL_PLANE, "mv", self.MANIFEST, "/etc/kubernetes/")
        deadline = time.monotonic() + 60
        while _answers() and time.monotonic() < deadline:
            time.sleep(0.5)

    def start_apiserver(self) -> None:
        self._docker("exec", self.CONTROL_PLANE, "mv", "/etc/kubernetes/kube-apiserver.yaml", self.MANIFEST)
        deadline = time.monotonic() + 120
        while not _answers() and time.monotonic() < deadline:
            time.sleep(0.5)

    def audit_lines(self) -> Iterator[str]:
        yield from self._docker("exec", self.CONTROL_PLANE, "cat", os.environ["EVERSTEP_AUDIT_LOG"]).splitlines()


def _answers() -> bool:
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=2s", timeout=5)
    except (KubectlFailed, subprocess.TimeoutExpired):
        return False
    return True


def from_environment() -> Faults | None:
    match os.environ.get("EVERSTEP_FAULTS"):
        case "namespaces":
            return Namespaces()
        case "kind":
            return Kind()
    return None


def signal_container(faults: Faults, pod: dict[str, Any], signal: str, where: str = "") -> int:
    """Send a signal to the processes of a pod from outside, as a kernel does; how many got it.

    Args:
        signal: KILL, STOP, CONT …
        where: only to processes with this text in their command line; as it stands in /proc, words end with NUL.
    """
    uid = pod["metadata"]["uid"]
    script = f"""
        for folder in /proc/[0-9]*; do
            grep -qsE '{uid}|{uid.replace("-", "_")}' $folder/cgroup || continue
            tr '\\0' ' ' < $folder/cmdline 2>/dev/null | grep -qs -- '{where}' || continue
            kill -{signal} ${{folder#/proc/}} && echo hit
        done; true"""
    return faults.on_node(pod["spec"]["nodeName"], script).count("hit")


def live_ranks(faults: Faults, pod: dict[str, Any]) -> int:
    """How many ranks of a pod have a process, seen from its node: also where no API server hears of it any more."""
    uid = pod["metadata"]["uid"]
    script = f"""
        for folder in /proc/[0-9]*; do
            grep -qsE '{uid}|{uid.replace("-", "_")}' $folder/cgroup || continue
            tr '\\0' '\\n' < $folder/environ 2>/dev/null | grep '^RANK='
        done | sort -u"""
    return len(faults.on_node(pod["spec"]["nodeName"], script).split())


def log(faults: Faults, pod: dict[str, Any]) -> str:
    """What the trainer of a pod has printed, read on its node: also while there is no API server to ask."""
    metadata = pod["metadata"]
    folder = f"/var/log/pods/{metadata['namespace']}_{metadata['name']}_{metadata['uid']}/trainer"
    return faults.on_node(pod["spec"]["nodeName"], f"cat {folder}/*.log")


@contextmanager
def api_server_away(faults: Faults) -> Iterator[None]:
    faults.stop_apiserver()
    try:
        yield
    finally:
        faults.start_apiserver()


def audit(faults: Faults, since: float) -> list[dict[str, Any]]:
    """What was asked of the API server from this moment (seconds since the epoch) on, oldest first."""
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    events = (json.loads(line) for line in faults.audit_lines() if line.startswith("{"))
    return [event for event in events if event["requestReceivedTimestamp"] >= begin]
