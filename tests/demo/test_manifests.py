"""Manifests that are none: status 2, one sentence that says what to do, and nothing is left behind."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.run.session import EVERSTEP

RUN = {
    "apiVersion": "everstep.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "linear"},
    "spec": {"numNodes": 2, "trainer": {"command": ["python", "linear.py"]}},
}


def with_spec(**spec: object) -> str:
    return yaml.safe_dump({**RUN, "spec": {**RUN["spec"], **spec}})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("{a: [", "YAML"),
        (yaml.safe_dump({**RUN, "kind": "Job", "apiVersion": "batch/v1"}), "TrainingRun"),
        (with_spec(numNods=2), "numNodes"),
        (with_spec(numNodes="two"), "numNodes"),
        (with_spec(elasticPolicy={"minNodes": 3, "maxNodes": 2}), "maxNodes 2 is below minNodes 3"),
        (with_spec(podTemplate={"spec": {"restartPolicy": "OnFailure"}}), "restartPolicy cannot be changed"),
    ],
    ids=["empty", "not-yaml", "another-kind", "unknown-field", "mistyped-field", "min-above-max", "template"],
)
def test_bad_manifests(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    refused(tmp_path, tmp_path / "run.yaml", says)


def test_no_manifest(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "run.yaml", "no such file")
    refused(tmp_path, tmp_path, "is a folder")


def refused(folder: Path, manifest: Path, says: str) -> None:
    before = sorted(folder.iterdir())
    done = subprocess.run([EVERSTEP, "run", "-f", manifest], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("everstep run: ")
    assert "Traceback" not in done.stderr
    assert sorted(folder.iterdir()) == before
