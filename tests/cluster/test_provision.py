"""Where the tests get a cluster from: KUBECONFIG, a tool of ours, Docker and kind, or a sentence of what to install.

The programs are scripts that write down how they are called.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import provision

#: Writes down its name and arguments, makes what it was asked to write, and answers as it is told to.
SCRIPT = """#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
while [ $# -gt 0 ]; do case "$1" in -o) touch "$2";; esac; shift; done
{answer}
"""

#: A new program: name, what it does besides → its path.
Program = Callable[..., str]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("KUBECONFIG", "EVERSTEP_CLUSTER_TOOL", "EVERSTEP_IMAGE_BUILDER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(provision, "STATE", tmp_path / "state")
    monkeypatch.setattr("shutil.which", _which(tmp_path / "bin"))
    return tmp_path / "calls"


@pytest.fixture
def program(calls: Path, tmp_path: Path) -> Program:
    def new(name: str, answer: str = "") -> str:
        path = tmp_path / "bin" / name
        path.write_text(SCRIPT.format(calls=calls, answer=answer))
        path.chmod(0o755)
        return str(path)

    return new


def _which(folder: Path) -> Callable[[str], str | None]:
    """Not what this very machine happens to have."""
    return lambda name: str(folder / name) if os.access(folder / name, os.X_OK) else None


def test_a_cluster_of_ones_own_is_left_alone(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/mine")
    for verb in ("up", "images", "down"):
        assert provision.main([verb]) == 0
        assert "KUBECONFIG is set: that cluster and its images are yours to manage" in capfd.readouterr().err
    assert provision.main(["env"]) == 0
    said = capfd.readouterr().out
    assert "EVERSTEP_TESTS_BEGAN" in said
    assert "EVERSTEP_FAULTS" not in said
    assert not calls.exists()


def test_a_cluster_of_namespaces(
    calls: Path, program: Program, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERSTEP_CLUSTER_TOOL", program("tool", 'grep -q " up " ' + str(calls)))
    monkeypatch.setenv("EVERSTEP_IMAGE_BUILDER", program("builder"))
    assert provision.main(["up"]) == 0
    asked, up, *images = calls.read_text().splitlines()
    assert asked == "tool status"
    assert up.startswith("tool up --nodes 3")
    assert f"--audit-log-path={provision.STATE}/audit/audit.log" in up
    assert [line.split()[0] for line in images] == ["builder", "tool"] * 3
    assert "--target operator" in images[0]

    program("tool", "echo export KUBECONFIG=/theirs")
    capfd.readouterr()
    assert provision.main(["env"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "export KUBECONFIG=/theirs" in lines
    assert "export EVERSTEP_FAULTS=namespaces" in lines
    assert "export EVERSTEP_RUNTIME_IMAGE=everstep/runtime:test" in lines
    assert provision.main(["down"]) == 0
    assert calls.read_text().endswith("tool down\n")


def test_a_cluster_of_namespaces_that_is_up(
    calls: Path, program: Program, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVERSTEP_CLUSTER_TOOL", program("tool"))
    monkeypatch.setenv("EVERSTEP_IMAGE_BUILDER", program("builder"))
    assert provision.main(["up"]) == 2, "somebody has brought it up otherwise"
    said = capfd.readouterr().err
    assert f"no audit log to {provision.STATE}/audit/audit.log" in said
    assert "make cluster-down, then make cluster-up" in said
    assert calls.read_text() == "tool status\n"
    log = provision.STATE / "audit" / "audit.log"
    log.parent.mkdir(parents=True)
    log.touch()
    assert provision.main(["up"]) == 0
    assert "tool up" not in calls.read_text()


def test_a_cluster_of_docker(calls: Path, program: Program, capfd: pytest.CaptureFixture[str]) -> None:
    program("kind")
    program("docker")
    assert provision.main(["up"]) == 0
    asked, up, *images = calls.read_text().splitlines()
    assert asked == "kind get clusters"
    assert up == f"kind create cluster --config tests/cluster/kind.yaml --kubeconfig {provision.STATE}/kubeconfig"
    assert [" ".join(line.split()[:2]) for line in images] == ["docker build", "kind load"] * 3
    assert provision.main(["env"]) == 0
    assert f"export KUBECONFIG={provision.STATE}/kubeconfig" in capfd.readouterr().out
    program("kind", "echo everstep")
    assert provision.main(["up"]) == 0
    assert calls.read_text().count("kind create") == 1


@pytest.mark.parametrize("there", [(), ("kind",), ("docker",)], ids="+".join)
def test_what_to_install_where_nothing_is_there(
    calls: Path, program: Program, there: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in there:
        program(name)
    for verb in ("up", "env", "down"):
        assert provision.main([verb]) == 2
        said = capfd.readouterr().err
        assert "set KUBECONFIG to a cluster" in said
        assert "install Docker" in said
        assert "kind (kind.sigs.k8s.io), then: make cluster-up" in said
    assert not calls.exists()
