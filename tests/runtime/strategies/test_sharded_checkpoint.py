"""What FSDP and tensor parallelism save on several ranks, any number of ranks loads, in both forms: the same bits."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from everstep.cli import main
from tests.runtime.processes import run_ranks

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[3]


def life(folder: Path, number: int, world: int, *arguments: object, prefix: str = "checkpoints") -> int:
    """`prefix`: of the run's own checkpoints, below the folder; "": it keeps none."""
    run = {
        "EVERSTEP_RUN_NAME": "sharded", "EVERSTEP_RUN_UID": "uid-1", "EVERSTEP_CHECKPOINT_EVERY_STEPS": "2",
        "EVERSTEP_CHECKPOINT_URI": (folder / prefix).as_uri(), "EVERSTEP_GENERATION": str(number),
    } if prefix else {}  # fmt: skip
    done = run_ranks("sharded.py", [folder, *arguments], world, 200, PYTHONPATH=str(ROOT), **run)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def loads_as_saved(folder: Path, number: int, world: int, step: int, *arguments: object, prefix: str = "") -> None:
    (folder / f"loaded-{step}.{world}").unlink(missing_ok=True)
    assert life(folder, number, world, "--only-load", *arguments, prefix=prefix) == 0
    loaded = (folder / f"loaded-{step}.{world}").read_text()
    assert loaded == (folder / f"saved-{step}").read_text()


def newest_of_run(folder: Path) -> int:
    return int(max(path.name.removesuffix(".json") for path in (folder / "checkpoints/markers").iterdir())[-10:])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of FSDP on two ranks, killed: a run's own checkpoints, and whole.ckpt of step 7."""
    folder = tmp_path_factory.mktemp("sharded")
    assert life(folder, 1, 2, "--kill-at", 7) == -9
    saved = {path.read_text() for path in folder.glob("saved-*")}
    assert len(saved) == len(list(folder.glob("saved-*"))) >= 3, "training changes the state"
    return folder


@pytest.mark.timeout(400)
def test_s60_c04_a_run_on_two_ranks_loads_on_three_and_one(sharded: Path) -> None:
    for number, world in enumerate((3, 1, 2), start=2):
        loads_as_saved(sharded, number, world, newest_of_run(sharded), prefix="checkpoints")


@pytest.mark.timeout(400)
def test_s60_c04_a_file_of_two_ranks_loads_on_three_and_one(sharded: Path) -> None:
    for world in (3, 1):
        loads_as_saved(sharded, 1, world, 7, "--ckpt", sharded / "whole.ckpt")


@pytest.mark.timeout(400)
def test_s60_s88_shards_and_file_are_converted_into_each_other(sharded: Path) -> None:
    step = newest_of_run(sharded)
    run, file, again = sharded / "checkpoints", sharded / "converted.ckpt", sharded / "again"
    assert main(["checkpoint", "convert", str(run), str(file)]) == 0
    loads_as_saved(sharded, 1, 1, step, "--ckpt", file)
    assert main(["checkpoint", "convert", str(sharded / "whole.ckpt"), str(again)]) == 0
    (again / "owner.json").unlink()  # that of nobody: the run of this test takes it over
    loads_as_saved(sharded, 2, 3, 7, prefix="again")
    for source in (run, file):
        assert main(["checkpoint", "export", str(source), str(sharded / "weights.safetensors")]) == 0
        weights = safetensors.torch.load_file(sharded / "weights.safetensors")
        expected = torch.load(file, weights_only=True)["state_dict"]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("world", [2, 4])
def test_s60_tensor_parallel_state_loads_on_one(tmp_path: Path, world: int) -> None:
    """Divided over two ranks; with four, sharded over two such groups as well."""
    assert life(tmp_path, 1, world, "--kill-at", 5, "--tensor", 2) == -9
    loads_as_saved(tmp_path, 1, 1, 5, "--tensor", 1, "--ckpt", tmp_path / "whole.ckpt")
    loads_as_saved(tmp_path, 2, 1, newest_of_run(tmp_path), "--tensor", 1, prefix="checkpoints")
    loads_as_saved(tmp_path, 1, world, 5, "--tensor", 2, "--ckpt", tmp_path / "whole.ckpt")
