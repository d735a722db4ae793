"""A cluster for the tests, and the images in it: `make cluster-up`, `make cluster-test`, `make cluster-down`.

    python tests/cluster/provision.py up       bring it up, build the images of this tree and load them
    python tests/cluster/provision.py images   build and load the images only
    python tests/cluster/provision.py env      print what the tests need, for `eval`
    python tests/cluster/provision.py down

With KUBECONFIG set, the cluster is yours: nothing is made or loaded, and the images are those that you name in
EVERSTEP_OPERATOR_IMAGE, EVERSTEP_RUNTIME_IMAGE and EVERSTEP_S3_IMAGE (see IMAGES below for what is in them).
Without it, the first of these that is there:

- EVERSTEP_CLUSTER_TOOL and EVERSTEP_IMAGE_BUILDER: programs that run a cluster in Linux namespaces, and build a
  Dockerfile, without Docker. That is what our own CI has.
- Docker and kind. The same steps, written for those who have them; our own CI has never run them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATE = ROOT / "build" / "cluster"
POLICY = Path(__file__).with_name("audit-policy.yaml")
NODES = 3

#: By environment variable: the image's name, its Dockerfile and its target there.
IMAGES = {
    "EVERSTEP_OPERATOR_IMAGE": ("everstep/operator:test", "Dockerfile", "operator"),
    "EVERSTEP_RUNTIME_IMAGE": ("everstep/runtime:test", "Dockerfile", "runtime"),
    "EVERSTEP_S3_IMAGE": ("everstep/s3:test", "tests/cluster/s3.Dockerfile", None),
}

NOTHING = """\
There is no cluster to test on. One of these helps:
  - set KUBECONFIG to a cluster that may be broken on purpose, and EVERSTEP_OPERATOR_IMAGE, EVERSTEP_RUNTIME_IMAGE and
    EVERSTEP_S3_IMAGE to images that it can pull (built from Dockerfile and tests/cluster/s3.Dockerfile)
  - install Docker (docs.docker.com/engine/install) and kind (kind.sigs.k8s.io), then: make cluster-up"""


class Unusable(Exception):
    """The cluster that is there cannot be tested on; the message says what to do."""


def call(*command: str | Path, output: bool = False) -> str:
    """Run it, from the repository's root; with `output`, what it printed."""
    print("+", shlex.join(map(str, command)), file=sys.stderr, flush=True)
    stdout = subprocess.PIPE if output else sys.stderr
    return subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=stdout).stdout or ""


class Namespaces:
    """A cluster in Linux namespaces, by a tool with the verbs up, down, load, env."""

    faults = "namespaces"

    def __init__(self, tool: str, builder: str) -> None:
        self.tool = tool
        self.builder = builder
        self.audit_log = STATE / "audit" / "audit.log"

    def up(self) -> None:
        if subprocess.run([self.tool, "status"], capture_output=True).returncode == 0:
            if not self.audit_log.exists():
                raise Unusable(
                    f"A cluster is up, and its API server writes no audit log to {self.audit_log}, from which tests "
                    "read what the operator has asked for. make cluster-down, then make cluster-up"
                )
            return
        self.audit_log.unlink(missing_ok=True)  # of one before
        self.audit_log.parent.mkdir(parents=True, exist_ok=True)
        flags = {"audit-policy-file": POLICY, "audit-log-path": self.audit_log, "audit-log-maxsize": 500}
        arguments = [f"--apiserver-arg=--{name}={value}" for name, value in flags.items()]
        call(self.tool, "up", "--nodes", str(NODES), "--gpus", "8", *arguments)

    def image(self, name: str, dockerfile: str, target: str | None) -> None:
        archive = STATE / "image.tar"
        stage = ["--target", target] if target else []
        call(self.builder, "-t", name, "-f", dockerfile, *stage, "-o", archive, ".")
        call(self.tool, "load", archive)
        archive.unlink()

    def env(self) -> dict[str, str]:
        lines = call(self.tool, "env", output=True).splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def down(self) -> None:
        call(self.tool, "down")


class Kind:
    """A cluster of Docker containers, by kind. Not run by our own CI, which has no Docker."""

    faults = "kind"
    audit_log = Path("/var/log/kubernetes/audit.log")  # in the container of the control plane

    def up(self) -> None:
        if "everstep" in call("kind", "get", "clusters", output=True).split():
            return
        config = Path(__file__).with_name("kind.yaml").relative_to(ROOT)
        call("kind", "create", "cluster", "--config", config, "--kubeconfig", STATE / "kubeconfig")

    def image(self, name: str, dockerfile: str, target: str | None) -> None:
        stage = ["--target", target] if target else []
        arguments = [f"--build-arg={key}" for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if key in os.environ]
        call("docker", "build", "-t", name, "-f", dockerfile, *stage, *arguments, ".")
        call("kind", "load", "docker-image", name, "--name", "everstep")

    def env(self) -> dict[str, str]:
        return {"KUBECONFIG": str(STATE / "kubeconfig")}

    def down(self) -> None:
        call("kind", "delete", "cluster", "--name", "everstep")


def provider() -> Namespaces | Kind | None:
    tool, builder = os.environ.get("EVERSTEP_CLUSTER_TOOL"), os.environ.get("EVERSTEP_IMAGE_BUILDER")
    if tool and builder:
        return Namespaces(tool, builder)
    return Kind() if shutil.which("kind") and shutil.which("docker") else None


def main(arguments: Sequence[str]) -> int:
    verbs = {"up", "images", "env", "down"}
    if len(arguments) != 1 or arguments[0] not in verbs:
        print(f"usage: provision.py {'|'.join(sorted(verbs))}", file=sys.stderr)
        return 2
    (verb,) = arguments
    if verb == "env":
        print(f"export EVERSTEP_TESTS_BEGAN={time.time():.0f}")
    if os.environ.get("KUBECONFIG"):
        if verb != "env":
            print("KUBECONFIG is set: that cluster and its images are yours to manage", file=sys.stderr)
        return 0
    cluster = provider()
    if cluster is None:
        print(NOTHING, file=sys.stderr)
        return 2
    STATE.mkdir(parents=True, exist_ok=True)
    if verb == "down":
        cluster.down()
    if verb == "up":
        try:
            cluster.up()
        except Unusable as why:
            print(why, file=sys.stderr)
            return 2
    if verb in ("up", "images"):
        for name, dockerfile, target in IMAGES.values():
            cluster.image(name, dockerfile, target)
    if verb == "env":
        images = {variable: name for variable, (name, *_) in IMAGES.items()}
        told = {"EVERSTEP_FAULTS": cluster.faults, "EVERSTEP_AUDIT_LOG": str(cluster.audit_log)}
        for variable, value in (cluster.env() | images | told).items():
            print(f"export {variable}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
