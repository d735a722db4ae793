"""Files of loggers, profilers and ModelCheckpoint outlive the pod: a life on another node goes on with them."""

import csv
import subprocess
from pathlib import Path

import pytest

from everstep.checkpoint import ckpt
from everstep.checkpoint.artifacts import Artifacts
from everstep_protocol import env
from tests.checkpoint.conftest import Place
from tests.runtime.processes import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
ROOT = str(Path(__file__).parents[2])


def life(place: Place, number: int, node: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_ranks(
        "artifacts.py", [node, *arguments], 1, 200, PYTHONPATH=ROOT, **place.environ,
        **{env.CHECKPOINT_URI: place.uri, env.CHECKPOINT_EVERY_STEPS: "4", env.GENERATION: str(number),
           env.RUN_NAME: "artifacts", env.RUN_UID: "uid-1"},
    )  # fmt: skip


def losses(text: str) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in csv.DictReader(text.splitlines()) if row["loss"]]


def test_s57_they_come_back_on_another_node(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    whole = Place(f"{place.uri}-whole", place.environ)
    assert life(whole, 1, tmp_path / "alone").returncode == 0
    assert life(place, 1, tmp_path / "a", "--kill-at", 10).returncode == -9
    done = life(place, 2, tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout

    rows = losses((tmp_path / "b/csv/version_0/metrics.csv").read_text())
    assert [step for step, _ in rows] == [str(step) for step in range(18)]
    assert rows == losses((tmp_path / "alone/csv/version_0/metrics.csv").read_text())
    assert losses(place.bytes("artifacts/csv/version_0/metrics.csv").decode()) == rows
    stored = place.listing("artifacts/")
    events = [key for key in stored if "events.out.tfevents" in key]
    assert len(events) == 2, "one of each life"
    assert all((tmp_path / "b" / key.removeprefix("artifacts/")).exists() for key in events)
    assert "artifacts/csv/version_0/fit-profile.txt" in stored
    best = done.stdout.split()[-1]
    assert best.startswith(f"{place.uri.removeprefix('file://')}/artifacts/csv/version_0/checkpoints/")
    assert ckpt.read(best)["global_step"] == 18
    assert [key for key in stored if key.endswith(".ckpt")] == [
        f"artifacts/csv/version_0/checkpoints/step={step}.ckpt" for step in (12, 18, 6)
    ]


def test_the_longer_file_counts_and_what_has_not_changed_stays(folder: Place, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "log").write_text("one\ntwo\n")
    (here / "x.ckpt").write_text("not this way")
    artifacts = Artifacts(folder.storage())
    artifacts.put([(str(here), "mine/v0")])
    assert folder.listing("artifacts/") == ["artifacts/mine/v0/log"]
    folder.write("artifacts/mine/v0/log", b"changed by another\n")
    artifacts.put([(str(here), "mine/v0")])
    assert folder.bytes("artifacts/mine/v0/log") == b"changed by another\n", "nothing has changed here"
    artifacts.fetch(str(there), "mine/v0")
    assert (there / "log").read_text() == "changed by another\n"
    (there / "log").write_text("changed by another\nand more\n")
    artifacts.fetch(str(there), "mine/v0")
    assert (there / "log").read_text().endswith("and more\n")


def test_a_store_that_is_full_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "uri").write_text("a file where a folder should be")
    (tmp_path / "log").write_text("one")
    Artifacts(Place(f"file://{tmp_path}/uri", {}).storage()).put([(str(tmp_path), "mine/v0")])
    assert "files of loggers were not copied to file://" in caplog.text
