"""Killed and resumed is the same as never killed: real processes, SIGKILL, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.processes import Exact

pytestmark = pytest.mark.ranks

SAME = ("weights", "result", "metrics", "batches", "steps", "random")


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert {key: a[key] for key in SAME} == {key: b[key] for key in SAME}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Three ranks, augmentation in two workers each, several buckets, never killed."""
    exact = Exact(tmp_path_factory.mktemp("three"), 3, "--workers", 2)
    return exact.finished(), exact.rows


def test_c01_killed_at_several_steps_is_bit_identical(tmp_path: Path, three: tuple[dict[str, Any], list[str]]) -> None:
    """10 steps in 2 epochs, checkpoints at even steps: before the first one, and in each epoch."""
    exact = Exact(tmp_path, 3, "--workers", 2).killed("0:1").killed("0:7")
    assert three[0]["buckets"] >= 3
    same(exact.finished(), three[0])
    assert exact.rows == three[1], "the CSV file is that of an uninterrupted run"


def test_killed_in_a_save_and_in_a_validation_is_bit_identical(
    tmp_path: Path, three: tuple[dict[str, Any], list[str]]
) -> None:
    exact = Exact(tmp_path, 3, "--workers", 2).killed("save:4")
    markers = sorted(path.name for path in (tmp_path / "checkpoints" / "markers").iterdir())
    assert [int(name.split("-")[2].removesuffix(".json")) for name in markers] == [2], "4 was never published"
    same(exact.killed("val:5").finished(), three[0])
    assert exact.rows == three[1]


def test_without_restored_random_states_it_differs(tmp_path: Path, three: tuple[dict[str, Any], list[str]]) -> None:
    exact = Exact(tmp_path, 3, "--workers", 2, "--no-rng").killed("0:7")
    assert exact.finished()["weights"] != three[0]["weights"], "dropout must have drawn other numbers"


def test_killed_in_test_does_not_repeat_the_fit(tmp_path: Path, three: tuple[dict[str, Any], list[str]]) -> None:
    exact = Exact(tmp_path, 3, "--workers", 2).killed("1:1")
    result = exact.finished()
    same(result, three[0])
    assert result["seen"] == [], "no training batch in the second life"


def close(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in a["parameters"]:
        flat_a, flat_b = str(a["parameters"][name]), str(b["parameters"][name])
        numbers_a = [float(x) for x in flat_a.replace("[", " ").replace("]", " ").replace(",", " ").split()]
        numbers_b = [float(x) for x in flat_b.replace("[", " ").replace("]", " ").replace(",", " ").split()]
        assert numbers_a == pytest.approx(numbers_b, rel=1e-4, abs=1e-6), name


def test_c02_another_world_keeps_the_global_batch_and_every_sample(tmp_path: Path) -> None:
    """2 ranks, then 3, then 1: the same steps on the same samples as 2 ranks all along."""
    whole = Exact(tmp_path / "a", 2, "--plain").finished()
    exact = Exact(tmp_path / "b", 2, "--plain").killed("0:5")  # resumes from 4
    exact.killed("0:10", world=3)  # of 14 steps; resumes from 10
    result = exact.finished(world=1)
    assert result["steps"] == whole["steps"]
    close(result, whole)
    rest = sorted(i for epoch, batch in result["seen"] if epoch == 1 for i in batch)
    done, odd = divmod(104 - len(rest), 16)  # steps of the second epoch that were durable when the last life began
    assert odd == 0
    assert 0 < done <= 3
    ranks = [Exact(tmp_path / "a", 2).result(rank)["seen"] for rank in range(2)]
    assert rest == sorted(i for seen in ranks for _, batch in seen[7 + done :] for i in batch)
    assert sorted(i for seen in ranks for _, batch in seen[7:] for i in batch) == list(range(104))


def test_ranks_come_to_the_same_as_one_process_of_the_same_global_batch(tmp_path: Path) -> None:
    """104 samples in rounds of 24: the last one is uneven and counts each sample once."""
    ranks = Exact(tmp_path / "a", 3, "--plain").finished()
    alone = Exact(tmp_path / "b", 1, "--plain", "--batch-size", 24).finished()
    close(ranks, alone)
    assert ranks["result"] == pytest.approx(alone["result"], rel=1e-5)
    assert ranks["result"]["count"] == 104, "a test sees each sample once"
    assert ranks["metrics"]["loss_epoch"] == pytest.approx(alone["metrics"]["loss_epoch"], rel=1e-5)
