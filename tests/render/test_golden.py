"""Rendered objects against the files that reviewers read."""

from pathlib import Path
from typing import Any

import pytest

from tests.render import golden


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_rendered_as_in_the_file(name: str) -> None:
    text = (golden.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert text == golden.GOLDEN[name].text(), "run `make generate` and look at the difference"
    assert "# https://" in text  # each names where its fields are documented


def test_check_names_stale_and_surplus_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.main([]) == 0
    assert golden.main(["--check"]) == 0
    (tmp_path / "cpu.yaml").write_text("")
    (tmp_path / "old.yaml").write_text("")
    assert golden.main(["--check"]) == 1
    assert {"cpu.yaml", "old.yaml"} == {Path(line.split()[0]).name for line in capsys.readouterr().err.splitlines()}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_no_pod_holds_a_secret_value_or_a_service_account_token(name: str) -> None:
    for pod in (o for o in golden.GOLDEN[name].render() if o["kind"] == "Pod"):
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in containers(pod):
            given = {v["name"]: v for v in container.get("env", [])}
            assert len(given) == len(container.get("env", []))  # none twice
            assert "value" not in given.get("EVERSTEP_TOKEN", {})
