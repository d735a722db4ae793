"""TrainingRuns on the cluster of the tests: made from few words, applied with kubectl, watched through their status."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from everstep_protocol import labels
from tests.cluster.kube import Object, apply, get, kubectl, listed, until

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "run" / "tiny.py"

#: The namespaces of the tests. The operator under test acts in all but the last.
NAMESPACE = "everstep-test"
QUOTA = "everstep-test-quota"
GONE = "everstep-test-gone"
STORE = "everstep-test-store"

BUCKET = "everstep"
CREDENTIALS = "store"  # name of the Secret in each namespace

#: Runs of one session of tests do not find what another has left in the store. Its worker processes share it.
SESSION = "s" + (os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(2))[:4]
ENDPOINT = f"http://s3.{STORE}.svc:8333"


def tiny(name: str, *arguments: Any, nodes: int = 1, namespace: str = NAMESPACE, **spec: Any) -> Object:
    """A run of the torch-free script tests/run/tiny.py; its checkpoints are in the cluster's S3."""
    code = {"files": [{"path": "train.py", "content": TINY.read_text()}]}
    return run(
        f"{name}-{SESSION}",
        {"command": ["python", "train.py"], "args": [str(a) for a in arguments], "code": code},
        nodes=nodes,
        namespace=namespace,
        **spec,
    )


def run(name: str, trainer: Object, *, nodes: int = 1, namespace: str = NAMESPACE, **spec: Any) -> Object:
    resources = {"requests": {"cpu": "10m", "memory": "64Mi"}}
    return {
        "apiVersion": "everstep.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "numNodes": nodes,
            "trainer": {"resources": resources} | trainer,
            "checkpoint": {
                "uri": f"s3://{BUCKET}/{namespace}/{name}",
                "endpoint": ENDPOINT,
                "region": "us-east-1",
                "credentialsSecret": CREDENTIALS,
                "every": {"steps": 20},
            },
        }
        | spec,
    }


#: For tiny.py: it never comes to a save of its own, so what is saved is saved because it was asked to.
ONLY_WHEN_ASKED = ("--every", 10**6)


class Run:
    """One that was applied."""

    def __init__(self, manifest: Object) -> None:
        self.manifest = manifest
        self.name = manifest["metadata"]["name"]
        self.namespace = manifest["metadata"]["namespace"]
        apply(manifest)
        self.uid = self.object()["metadata"]["uid"]

    def object(self) -> Object:
        found = get("trainingrun", self.name, self.namespace)
        assert found is not None, f"TrainingRun {self.name} is gone"
        return found

    @property
    def status(self) -> Object:
        status: Object = self.object().get("status") or {}
        return status

    @property
    def step(self) -> int:
        return (self.status.get("progress") or {}).get("step") or 0

    def pods(self, role: str = labels.WORKER) -> list[Object]:
        """By node index, the newest attempt last."""
        found = listed("pods", self.namespace, f"{labels.RUN_UID}={self.uid},{labels.ROLE}={role}")
        order = (labels.NODE, labels.ATTEMPT)
        return sorted(found, key=lambda pod: [int(pod["metadata"]["labels"].get(key, 0)) for key in order])

    def pod(self, node: int) -> Object:
        """The newest pod of a node index."""
        return [pod for pod in self.pods() if pod["metadata"]["labels"][labels.NODE] == str(node)][-1]

    @property
    def prefix(self) -> str:
        """Where its checkpoints are in the bucket."""
        return f"{self.namespace}/{self.name}/"

    def phase(self, *wanted: str, seconds: float = 90) -> Object:
        """Wait for one of these phases; the status then."""

        def look() -> Object | None:
            status = self.status
            return status if status.get("phase") in wanted else None

        try:
            return until(f"{self.name} is {' or '.join(wanted)}", look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.picture()}") from None

    def reaches(self, step: int, seconds: float = 120) -> Object:
        """Wait for a step of training; the status then."""

        def look() -> Object | None:
            status = self.status
            return status if ((status.get("progress") or {}).get("step") or 0) >= step else None

        try:
            return until(f"{self.name} is at step {step}", look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.picture()}") from None

    def patch(self, **spec: Any) -> None:
        change = json.dumps({"spec": spec})
        kubectl("patch", "trainingrun", self.name, "-n", self.namespace, "--type=merge", "-p", change)

    def execute(self, pod: Object, script: str, container: str = "trainer") -> str:
        """Run a Python script in a container of a pod."""
        name = pod["metadata"]["name"]
        return kubectl("exec", "-i", name, "-n", self.namespace, "-c", container, "--", "python", "-", stdin=script)

    def logs(self, node: int = 0) -> str:
        return kubectl("logs", self.pod(node)["metadata"]["name"], "-n", self.namespace, "-c", "trainer")

    def delete(self, *arguments: str) -> None:
        kubectl("delete", "trainingrun", self.name, "-n", self.namespace, "--ignore-not-found", *arguments)

    def picture(self) -> str:
        """What somebody who debugs wants to see first."""
        parts = [f"--- status: {self.status}"]
        for pod in [*self.pods(), *self.pods(labels.COORDINATOR)]:
            name = pod["metadata"]["name"]
            states = [c.get("state") for c in pod["status"].get("containerStatuses", [])]
            gone = " terminating" if pod["metadata"].get("deletionTimestamp") else ""
            parts.append(
                f"--- pod {name} on {pod['spec'].get('nodeName')}: {pod['status'].get('phase')}{gone} {states}"
            )
            done = kubectl_quietly("logs", name, "-n", self.namespace, "--all-containers", "--tail=15")
            parts.append(done)
        parts.append(
            kubectl_quietly(
                "get", "events", "-n", self.namespace, "--field-selector", f"involvedObject.name={self.name}"
            )
        )
        return "\n".join(parts)


def kubectl_quietly(*arguments: str) -> str:
    try:
        return kubectl(*arguments)
    except Exception as error:  # a picture of what failed must not hide the failure
        return str(error)


def node_of(pod: Object) -> str:
    node: str = pod["spec"]["nodeName"]
    return node
