"""Checkpoints of the real Lightning and ours: each reads the other's, and a fit goes on from it. S-85, S-50."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import everstep as L
from everstep.callbacks import ModelCheckpoint
from tests.runtime.build import data, trainer
from tests.runtime.peer import lightning, quiet


class Behaviour:
    """What both modules do."""

    def __init__(self, width: int = 5, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()  # type: ignore[attr-defined]
        self.layer, self.rate, self.steps = nn.Linear(3, width), rate, []  # type: ignore[var-annotated]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps.append((self.current_epoch, batch_idx))  # type: ignore[attr-defined]
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss)  # type: ignore[attr-defined]
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val", (self.layer(batch[0]) - batch[1]).square().mean())  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.layer.parameters(), lr=self.rate)
        return [adam], [torch.optim.lr_scheduler.StepLR(adam, 1, gamma=0.5)]


class Ours(Behaviour, L.LightningModule): ...


class Theirs(Behaviour, lightning.LightningModule): ...


def batches() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=4)  # six, in the order of the data: both libraries take the same


def fit_theirs(folder: Path, module: Theirs, max_epochs: int, ckpt_path: Any = None) -> Any:
    keep = lightning.callbacks.ModelCheckpoint(folder, "{epoch}-{step}", monitor="val", save_top_k=-1)
    every = lightning.callbacks.ModelCheckpoint(folder, "s{step}", save_top_k=-1, every_n_train_steps=4)
    with quiet():
        runner = lightning.Trainer(
            max_epochs=max_epochs, callbacks=[keep, every], logger=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        runner.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    return runner


def fit_ours(folder: Path, module: Ours, max_epochs: int, ckpt_path: Any = None) -> L.Trainer:
    keep = ModelCheckpoint(folder, "{epoch}-{step}", monitor="val", save_top_k=-1)
    every = ModelCheckpoint(folder, "s{step}", save_top_k=-1, every_n_train_steps=4)
    runner = trainer(folder, callbacks=[keep, every], max_epochs=max_epochs)
    runner.fit(module, batches(), batches(), ckpt_path=ckpt_path)
    return runner


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Theirs]:
    """Two epochs of each library, from the same weights."""
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    torch.manual_seed(5)
    module = Theirs()
    again = Ours()
    again.load_state_dict(module.state_dict())
    fit_theirs(theirs, module, 2)
    fit_ours(ours, again, 2)
    assert torch.equal(module.layer.weight, again.layer.weight), "the same numbers, bit by bit"
    return theirs, ours, module


def test_s50_the_same_files(both: tuple[Path, Path, Theirs]) -> None:
    theirs, ours, _ = both
    names = sorted(path.name for path in theirs.iterdir())
    assert names == sorted(path.name for path in ours.iterdir())
    for name in names:
        a, b = (torch.load(folder / name, weights_only=True) for folder in (theirs, ours))
        assert a.keys() <= b.keys()
        for key in ("epoch", "global_step", "hparams_name", "hyper_parameters"):
            assert a[key] == b[key], (name, key)
        assert a["callbacks"].keys() == b["callbacks"].keys()
        for key, value in a["state_dict"].items():
            assert torch.equal(b["state_dict"][key], value), (name, key)
        for x, y in zip(a["optimizer_states"], b["optimizer_states"], strict=True):
            assert torch.equal(x["state"][0]["exp_avg"], y["state"][0]["exp_avg"])


NAMES = ["sstep=4", "sstep=8", "epoch=0-step=6", "epoch=1-step=12"]


@pytest.mark.parametrize("name", NAMES)
def test_s85_c01_a_fit_goes_on_from_lightnings_file(
    tmp_path: Path, both: tuple[Path, Path, Theirs], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it had never been interrupted; Lightning itself, in the middle of an epoch, begins the data anew."""
    straight, ours = Theirs(), Ours()
    fit_theirs(tmp_path / "a", straight, 3, both[0] / "epoch=1-step=12.ckpt")
    runner = fit_ours(tmp_path / "b", ours, 3, both[0] / f"{name}.ckpt")
    assert (runner.global_step, runner.current_epoch) == (18, 3)
    done = runner.global_step - len(ours.steps)
    assert ours.steps == [(step // 6, step % 6) for step in range(done, 18)]
    assert torch.equal(ours.layer.weight, straight.layer.weight)
    assert f"{name}.ckpt is Lightning 2." in capsys.readouterr().out, "what it does not hold is said"


@pytest.mark.parametrize("name", NAMES)
def test_s50_lightning_goes_on_from_our_file(tmp_path: Path, both: tuple[Path, Path, Theirs], name: str) -> None:
    straight, theirs = Ours(), Theirs()
    fit_ours(tmp_path / "a", straight, 3, both[1] / f"{name}.ckpt")
    runner = fit_theirs(tmp_path / "b", theirs, 3, both[1] / f"{name}.ckpt")
    assert (runner.global_step, runner.current_epoch) == (18, 3)
    assert theirs.steps == straight.steps
    if name.startswith("epoch"):
        assert torch.equal(theirs.layer.weight, straight.layer.weight)


def test_s85_load_from_checkpoint_both_ways(both: tuple[Path, Path, Theirs]) -> None:
    theirs, ours, module = both
    read = Ours.load_from_checkpoint(theirs / "epoch=1-step=12.ckpt", rate=0.7)
    assert torch.equal(read.layer.weight, module.layer.weight)
    assert read.hparams == {"width": 5, "rate": 0.7}
    with quiet():
        back = Theirs.load_from_checkpoint(ours / "epoch=1-step=12.ckpt", weights_only=True)
    assert torch.equal(back.layer.weight, module.layer.weight)
    assert dict(back.hparams) == {"width": 5, "rate": 0.1}
