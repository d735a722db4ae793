"""Several optimizers on several ranks, by hand and automatically: the numbers of one rank with the whole batch."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.processes import run_ranks

pytestmark = pytest.mark.ranks


def trained(folder: Path, world: int, *arguments: object) -> dict[str, Any]:
    out = folder / f"{world}.json"
    done = run_ranks("adversaries.py", [out, *arguments], world)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(out.with_suffix(".0").read_text())
    return result


@pytest.mark.parametrize(("arguments", "steps"), [((), 8), (("--automatic",), 8)], ids=["s07 manual", "c14 automatic"])
def test_s07_two_ranks_train_as_one(tmp_path: Path, arguments: tuple[str, ...], steps: int) -> None:
    one, two = trained(tmp_path, 1, *arguments), trained(tmp_path, 2, *arguments)
    assert one["steps"] == two["steps"] == steps
    for name, value in one["weights"].items():
        flat = [x for row in value for x in (row if isinstance(row, list) else [row])]
        other = [x for row in two["weights"][name] for x in (row if isinstance(row, list) else [row])]
        assert other == pytest.approx(flat, abs=1e-6), name
    assert two["ranks"] == [0, 1], "all_gather"


def test_s75_none_on_one_of_several_ranks_is_refused(tmp_path: Path) -> None:
    done = run_ranks("adversaries.py", [tmp_path / "out", "--none-on", 1], 2)
    assert done.returncode != 0
    assert "training_step returned None on rank 1: the other ranks would wait" in done.stderr
