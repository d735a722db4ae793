"""seed_everything."""

import os
import random
from typing import Any

import numpy as np
import pytest
import torch

import everstep as pl
from everstep import rng, seed


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_s90_s102_one_seed_for_python_numpy_and_torch() -> None:
    assert pl.seed_everything(42, workers=True) == 42
    first = drawn()
    drawn()
    pl.seed_everything(42)
    assert drawn() == first
    pl.seed_everything(43)
    assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_s90_a_script_that_sets_none_gets_the_seed_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed, "_chosen", None)
    monkeypatch.setenv("EVERSTEP_SEED", "7")
    torch.seed()  # as it is in a new process
    pl.LightningModule()
    assert (torch.initial_seed(), seed.run_seed()) == (7, 7)
    monkeypatch.setattr(seed, "_chosen", None)
    torch.manual_seed(5)
    pl.Trainer(logger=False)
    assert torch.initial_seed() == 5, "but one that seeds torch itself keeps that"


def test_s90_the_seed_is_where_lightnings_is_for_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    pl.seed_everything(42, workers=True)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("42", "1")
    assert pl.seed_everything() == 42
    assert os.environ["PL_SEED_WORKERS"] == "0"
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # as the process that started this one has set it
    assert pl.seed_everything() == 7
    assert torch.initial_seed() == 7


def test_s90_without_a_seed_one_is_chosen_and_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    chosen = pl.seed_everything()
    first = drawn()
    assert pl.seed_everything(chosen) == chosen
    assert drawn() == first
    with pytest.raises(ValueError, match="at most 4294967295"):
        pl.seed_everything(2**32)


@pytest.mark.parametrize(
    "draw",
    [
        random.random,
        lambda: random.gauss(0, 1),
        np.random.rand,
        np.random.randn,
        lambda: torch.rand(()),
        lambda: random.seed(5),
        lambda: np.random.seed(5),
        lambda: np.random.set_state(np.random.RandomState(7).get_state()),
    ],
)
def test_s90_no_draw_goes_unnoticed(draw: Any) -> None:
    """Of the normals that come in pairs the second one is drawn without touching the generator's words."""
    pl.seed_everything(3)
    for _ in range(5):
        state = rng.get_state()
        _, words, gauss = random.getstate()
        python, numpy = state["python"], state["numpy"]
        assert (python["words"].tolist(), python["gauss"]) == (list(words), gauss)
        _, keys, *rest = np.random.get_state()
        assert numpy["keys"].tolist() == keys.tolist()
        assert [numpy["position"], numpy["has_gauss"], numpy["cached"]] == rest
        assert torch.equal(state["torch"], torch.get_rng_state())
        draw()
