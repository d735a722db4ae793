"""Batch norm over all ranks is that of one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import everstep as L
from tests.runtime.build import trainer
from tests.runtime.strategies.models import Blocks, loader

pytestmark = pytest.mark.ranks


class Normed(Blocks):
    def make(self) -> None:
        self.first = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())  # type: ignore[assignment]
        self.last = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x))
        return result

    def configure_optimizers(self) -> Any:  # Adam would blow up the noise that a bias before a batch norm gets
        return torch.optim.SGD(self.parameters(), lr=0.1)


def state(tmp_path: Path, ranks: int, **more: Any) -> dict[str, torch.Tensor]:
    L.seed_everything(5)
    module = Normed()
    runner = trainer(tmp_path, devices=ranks, accelerator="cpu", **more)
    runner.fit(module, loader(6 // ranks, 24), loader(6 // ranks, 24))
    assert "val_loss" in runner.callback_metrics
    return module.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[name].float(), b[name].float(), rtol=1e-4, atol=1e-5) for name in a)


@pytest.mark.parametrize("ranks", [2, 3])
def test_s30_sync_batchnorm(tmp_path: Path, ranks: int) -> None:
    alone = state(tmp_path, 1, sync_batchnorm=True)
    assert equal(alone, state(tmp_path, ranks, strategy="ddp_fork", sync_batchnorm=True))
    assert not equal(alone, state(tmp_path, ranks, strategy="ddp_fork"))
