"""`kubectl apply`: the main job on a real cluster, with the weights of the same job on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cluster import store
from tests.cluster.kube import Object, kubectl, until
from tests.cluster.runs import BUCKET, CREDENTIALS, ENDPOINT, NAMESPACE, SESSION, Run, tiny

pytestmark = pytest.mark.cluster

Start = Callable[[Object], Run]

ROOT = Path(__file__).parents[2]
EVERSTEP = Path(sys.executable).with_name("everstep")
DIGITS = ROOT / "examples" / "digits"
EXAMPLES = sorted(
    path for path in (ROOT / "examples").rglob("*.yaml") if "kind: TrainingRun" in path.read_text(encoding="utf-8")
)

#: Examples for an image with more in it than ours, and the first package that they miss here.
NEEDS_ANOTHER_IMAGE = {"cifar10": "matplotlib"}


def in_this_cluster(manifest: Object, name: str, *arguments: str) -> Object:
    """An example as somebody uses it who has a store of his own: its address, its credentials, another name."""
    manifest["metadata"] |= {"name": name, "namespace": NAMESPACE}
    spec = manifest["spec"]
    spec["trainer"].setdefault("resources", {"requests": {"cpu": "10m"}})
    if arguments:
        spec["trainer"]["args"] = list(arguments)
    store_of_ours = {"endpoint": ENDPOINT, "region": "us-east-1", "credentialsSecret": CREDENTIALS}
    spec["checkpoint"] |= store_of_ours | {"uri": f"s3://{BUCKET}/{NAMESPACE}/{name}"}
    return manifest


@pytest.mark.serial
def test_digits_on_three_nodes_ends_with_the_weights_of_the_local_run(start: Start, tmp_path: Path) -> None:
    manifest = yaml.safe_load((DIGITS / "trainingrun.yaml").read_text())
    manifest = in_this_cluster(manifest, f"digits-{SESSION}", "--epochs", "2", "--workers", "0")
    run = start(manifest)
    status = run.phase("Succeeded", "Failed", seconds=240)
    assert status["phase"] == "Succeeded", run.picture()
    assert status["lastCheckpoint"]["worldSize"] == 3
    assert status["restarts"]["total"] == 0
    assert status["progress"]["step"] == status["progress"]["maxSteps"] == 54
    assert status["lastCheckpoint"]["verified"] is True

    local = json.loads(json.dumps(manifest))  # the same name and namespace: the seed of a run comes from them
    for key in ("endpoint", "credentialsSecret", "region"):  # its own S3 server, which it starts itself
        del local["spec"]["checkpoint"][key]
    local["spec"]["trainer"]["workingDir"] = str(DIGITS)
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(local))
    command = [EVERSTEP, "run", "-f", tmp_path / "local.yaml", "--state-dir", tmp_path / "state"]
    subprocess.run(command, check=True, timeout=240, env={k: v for k, v in os.environ.items() if "AWS" not in k})
    command = [sys.executable, DIGITS / "final_weights.py", "--state-dir", tmp_path / "state"]
    here = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    there = json.loads(
        store.python((DIGITS / "final_weights.py").read_text(), "--uri", manifest["spec"]["checkpoint"]["uri"])
    )
    assert there["tensors"] > 20
    assert there["sha256"] == here["sha256"], "bit for bit"
    assert there["results"] == here["results"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_applied_and_starts(start: Start, path: Path) -> None:
    """With the scripts beside it, as `everstep pack` puts them in."""
    kubectl("create", "-n", NAMESPACE, "-f", str(path), "--dry-run=server", "--validate=strict")
    pack = [EVERSTEP, "pack", "-f", path, *path.parent.glob("*.py")]
    manifest = yaml.safe_load(subprocess.run(pack, check=True, stdout=subprocess.PIPE).stdout)
    run = start(in_this_cluster(manifest, f"{manifest['metadata']['name'][:30]}-x{SESSION}"))
    status = until_it_trains_or_fails(run)
    if (lacking := NEEDS_ANOTHER_IMAGE.get(path.parent.name)) is not None:
        assert f"No module named '{lacking}'" in status["attempts"][-1]["message"], "its script has begun"
    else:
        assert not status.get("attempts"), run.picture()
        run.reaches(1)
    assert run.status["observedGeneration"] == 1


def until_it_trains_or_fails(run: Run) -> Object:
    def look() -> Object | None:
        status = run.status
        return status if status.get("attempts") or status.get("phase") in ("Running", "Succeeded") else None

    return until(f"{run.name} trains", look, 180)


def test_there_is_an_example() -> None:
    assert DIGITS / "trainingrun.yaml" in EXAMPLES


@pytest.fixture(scope="module")
def version_file(the_store: None) -> tuple[str, str]:
    """Where the runtime image has its protocol version, and the text of that file."""
    script = "import everstep_protocol.version as v; print(v.__file__); print(open(v.__file__).read())"
    path, _, text = store.python(script).partition("\n")
    return path, text


@pytest.mark.parametrize(("difference", "works"), [(1, True), (-1, True), (2, False)])
def test_a_runtime_of_another_protocol_version(
    start: Start, version_file: tuple[str, str], difference: int, works: bool
) -> None:
    """Neighbours talk; further apart, the run says both versions."""
    path, text = version_file
    now = int(text.split("PROTOCOL_VERSION = ")[1].split()[0])
    changed = text.replace(f"PROTOCOL_VERSION = {now}", f"PROTOCOL_VERSION = {now + difference}")
    name = f"version-{now + difference}-{SESSION}"
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}}
    kubectl("apply", "-f", "-", stdin=json.dumps(config | {"data": {"version.py": changed}}))
    manifest = tiny(f"version-{now + difference}", "--steps", 10, nodes=2)
    manifest["spec"]["podTemplate"] = {
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "volumeMounts": [{"name": "version", "mountPath": path, "subPath": "version.py"}],
                }
            ],
            "volumes": [{"name": "version", "configMap": {"name": name}}],
        }
    }
    run = start(manifest)
    status = run.phase("Succeeded", "Failed", seconds=150)
    if works:
        assert status["phase"] == "Succeeded", run.picture()
    else:
        assert status["phase"] == "Failed", run.picture()
        assert f"speaks protocol version {now}" in status["message"]
        assert f"this side speaks {now + difference}" in status["message"]
