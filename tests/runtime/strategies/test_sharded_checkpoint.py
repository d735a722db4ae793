"""What FSDP saves on two ranks, any number of ranks loads: the same bits."""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.processes import run_ranks

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[3]


def life(folder: Path, number: int, world: int, *arguments: object) -> int:
    done = run_ranks(
        "sharded.py", [folder, *arguments], world, 200, PYTHONPATH=str(ROOT), EVERSTEP_RUN_NAME="sharded",
        EVERSTEP_RUN_UID="uid-1", EVERSTEP_CHECKPOINT_URI=(folder / "checkpoints").as_uri(),
        EVERSTEP_CHECKPOINT_EVERY_STEPS="2", EVERSTEP_GENERATION=str(number),
    )  # fmt: skip
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.timeout(400)
def test_s60_c04_saved_on_two_ranks_loads_on_three_and_one(tmp_path: Path) -> None:
    assert life(tmp_path, 1, 2, "--kill-at", 7) == -9
    saved: dict[str, Any] = {path.name: path.read_text() for path in tmp_path.glob("saved-*")}
    assert len(set(saved.values())) == len(saved) >= 2, "training changes the state"
    for number, world in enumerate((3, 1, 2), start=2):
        assert life(tmp_path, number, world, "--only-load") == 0
        (loaded,) = tmp_path.glob(f"loaded-*.{world}")
        step = loaded.stem.removeprefix("loaded-")
        assert loaded.read_text() == saved[f"saved-{step}"]
