"""Checkpoints of the real Lightning and ours: each reads the other's, and a fit goes on from it. S-85, S-50."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.trainer.run import Run
from tests.runtime.build import ALONE, Memory, data, trainer
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


class Grows:
    """Takes the width of the file that it is loaded from, and tells what comes when."""

    def __init__(self) -> None:
        super().__init__(width=2)  # type: ignore[call-arg]
        self.told: list[str] = []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.told.append("module's on_load_checkpoint")
        self.layer = nn.Linear(3, checkpoint["state_dict"]["layer.weight"].shape[0])

    def configure_optimizers(self) -> Any:
        self.told.append(f"configure_optimizers, of {float(self.layer.weight.detach().abs().sum()):.6f}")
        return super().configure_optimizers()  # type: ignore[misc]


class OursGrows(Grows, Ours): ...


class TheirsGrows(Grows, Theirs): ...


class Tells:
    """Its own state is "there", and it notes the same things beside the module's."""

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        pl_module.told.append("callback's on_load_checkpoint")
        self.module = pl_module

    def state_dict(self) -> dict[str, Any]:
        return {"there": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.module.told.append(f"callback's load_state_dict {state_dict}")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.told.append("on_fit_start")


class OurTells(Tells, L.Callback): ...


class TheirTells(Tells, lightning.Callback): ...


def test_s85_s04_a_module_that_fits_itself_to_the_file_trains_what_is_new(tmp_path: Path, both: Any) -> None:
    """It changes in on_load_checkpoint, before its optimizers are made: as Lightning's does, bit by bit."""
    quietly: Any = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    makes: dict[Any, Any] = {
        TheirsGrows: (TheirTells, lambda more: lightning.Trainer(accelerator="cpu", **quietly, **more)),
        OursGrows: (OurTells, lambda more: trainer(tmp_path, **more)),
    }
    trained = []
    for kind, (tells, make) in makes.items():
        start, module = kind(), kind()
        with quiet():
            first = make({"max_epochs": 1, "limit_val_batches": 0, "callbacks": [tells()]})
            start.layer = nn.Linear(3, 5)
            start.layer.load_state_dict({"weight": torch.full((5, 3), 0.1), "bias": torch.zeros(5)})
            first.fit(start, batches())
            first.save_checkpoint(tmp_path / f"{kind.__name__}.ckpt")
            make({"max_epochs": 3, "limit_val_batches": 0, "callbacks": [tells()]}).fit(
                module, batches(), ckpt_path=tmp_path / f"{kind.__name__}.ckpt"
            )
        assert not torch.equal(module.layer.weight, start.layer.weight), "it was trained"
        trained.append((module, start))
    (theirs, _), (ours, _) = trained
    assert torch.equal(ours.layer.weight, theirs.layer.weight)
    assert ours.told == theirs.told
    assert len(ours.told) == 5


def test_s85_an_evaluation_and_a_completed_fit_take_the_width_of_the_file(tmp_path: Path, both: Any) -> None:
    ours = OursGrows()
    trainer(tmp_path).validate(ours, batches(), ckpt_path=both[1] / "epoch=1-step=12.ckpt")
    assert torch.equal(ours.layer.weight, both[2].layer.weight)

    def script() -> OursGrows:
        module = OursGrows()
        run = Run(ALONE, open_checkpoints=lambda _: memory)
        trainer(tmp_path, run=run, max_epochs=3).fit(
            module, batches(), batches(), ckpt_path=both[1] / "epoch=1-step=12.ckpt"
        )
        return module

    memory = Memory()
    module, again = script(), script()
    assert len(memory.saved) == 1, "the second time it was complete"
    assert torch.equal(module.layer.weight, again.layer.weight)
