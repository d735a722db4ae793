"""seed_everything."""

import random

import numpy as np
import pytest
import torch

import everstep as pl


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


def test_s90_without_a_seed_one_is_chosen_and_returned() -> None:
    seed = pl.seed_everything()
    first = drawn()
    assert pl.seed_everything(seed) == seed
    assert drawn() == first
    with pytest.raises(ValueError, match="at most 4294967295"):
        pl.seed_everything(2**32)
