"""ModelCheckpoint and ckpt_path with real ranks: S-50, S-81."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.processes import run_ranks


def train(folder: Path, name: str, world: int, *ckpt_path: object) -> list[dict[str, Any]]:
    """What each rank has found at the end."""
    done = run_ranks("kept.py", [folder / name, folder / f"{name}-files", *ckpt_path], world)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{name}.{rank}").read_text()) for rank in range(world)]


@pytest.mark.ranks
def test_s50_s81_two_ranks_decide_alike_and_resume_exactly_from_one_file(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", 2)
    assert whole[0] == whole[1]
    assert len(list((tmp_path / "whole-files").glob("*.ckpt"))) == 10
    again = train(tmp_path, "again", 2, tmp_path / "whole-files" / "step=3.ckpt")
    assert again[0] == again[1]
    assert (again[0]["weights"], again[0]["mean"]) == (whole[0]["weights"], whole[0]["mean"]), "dropout included"


@pytest.mark.ranks
def test_s50_a_file_of_two_ranks_goes_on_on_one(tmp_path: Path) -> None:
    train(tmp_path, "two", 2)
    (one,) = train(tmp_path, "one", 1, tmp_path / "two-files" / "step=3.ckpt")
    assert len(list((tmp_path / "one-files").glob("*.ckpt"))) == 7, "steps 4 to 10: every sample once"
    assert one["weights"]
