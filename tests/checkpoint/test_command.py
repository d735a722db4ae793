"""`everstep checkpoint inspect | verify | convert | export`: S-88, S-89."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.checkpoint import ckpt
from everstep.cli import main
from everstep.environment import Environment
from everstep.trainer.run import Run
from tests.runtime.build import Validated, loader, trainer


class Net(Validated):
    def __init__(self, width: int = 1) -> None:
        super().__init__(lambda module: torch.optim.Adam(module.parameters(), lr=0.01))
        self.save_hyperparameters()


def weights(model: torch.nn.Module) -> list[Any]:
    return [p.tolist() for p in model.parameters()]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Net]:
    """A run with checkpoints after steps 4, 8 and 12 and .ckpt files, and the module at its end."""
    folder = tmp_path_factory.mktemp("kept")
    run = Run(Environment(checkpoint_uri=(folder / "run").as_uri(), checkpoint_every_steps=4))
    L.seed_everything(1)
    model, keep = Net(), ModelCheckpoint(folder, "{step}", "val_loss", save_top_k=-1)
    trainer(folder, run=run, callbacks=[keep]).fit(model, loader(shuffle=True), loader())
    return folder, model


def test_s88_inspect_a_file(kept: tuple[Path, Net], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "inspect", str(kept[0] / "step=6.ckpt"), "--tensors"]) == 0
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert lines["step"] == "step 6"
    assert lines["weights"] == "weights 4 numbers in 2 tensors, 16 B"
    assert lines["resumes"] == "resumes exactly on 1 rank, on any number of ranks at epoch 1, position 0"
    assert lines["hparam width"] == "hparam width 1"
    assert lines["optimizer 0"].startswith("optimizer 0 lr 0.01, weight_decay 0")
    assert "best_model_score " in lines["callback ModelCheckpoint"]
    assert lines["layer.weight"] == "layer.weight float32 [1, 3] 12 B"


def test_s88_inspect_a_run(kept: tuple[Path, Net], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "inspect", (kept[0] / "run").as_uri(), "--step", "8"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == ["name", "step", "saved", "ranks", "size", "parent", "kept"]
    assert [line[:2] for line in lines[1:3]] == [["000001-001-0000000012", "12"], ["000001-000-0000000008", "8"]]
    assert ["step", "8"] in lines
    assert main(["checkpoint", "inspect", str(kept[0] / "run"), "--step", "9"]) == 1
    assert "no checkpoint of step 9; there are those of step 12, 8" in capsys.readouterr().err


def test_s88_verify(kept: tuple[Path, Net], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(kept[0] / "step=6.ckpt")]) == 0
    assert main(["checkpoint", "verify", str(kept[0] / "run")]) == 0
    assert capsys.readouterr().out.count("good: every file has its SHA-256") == 2
    whole = bytearray((kept[0] / "step=6.ckpt").read_bytes())
    values = ckpt.read(kept[0] / "step=6.ckpt")["state_dict"]["layer.weight"].numpy().tobytes()
    flipped = whole.copy()
    flipped[whole.index(values)] ^= 1
    for name, damaged in (("flipped", flipped), ("cut", whole[:900])):
        (tmp_path / f"{name}.ckpt").write_bytes(damaged)
        assert main(["checkpoint", "verify", str(tmp_path / f"{name}.ckpt")]) == 1, name
        assert "is damaged" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(tmp_path / "gone.ckpt")]) == 1
    assert "there is no checkpoint file" in capsys.readouterr().out


def test_s88_verify_names_the_damaged_part_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(Environment(checkpoint_uri=tmp_path.as_uri(), checkpoint_every_steps=4))
    trainer(tmp_path, run=run).fit(Net(), loader(), loader())
    shard = next((tmp_path / "data").glob("*-000-*8/shard*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any("8 shard-00000.safetensors has changed since it was written" in line for line in lines)
    assert any("12 good" in line for line in lines)
    assert main(["checkpoint", "inspect", str(tmp_path), "--step", "8"]) == 1


def test_s50_a_run_becomes_a_file_and_a_file_a_run(
    kept: tuple[Path, Net], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = kept
    assert main(["checkpoint", "convert", str(folder / "run"), str(tmp_path / "8.ckpt"), "--step", "8"]) == 0
    assert "8.ckpt: step 8, epoch 1" in capsys.readouterr().out
    again = Net()
    trainer(tmp_path).fit(again, loader(shuffle=True), loader(), ckpt_path=tmp_path / "8.ckpt")
    assert weights(again) == weights(model), "exactly"

    assert main(["checkpoint", "convert", str(tmp_path / "8.ckpt"), str(tmp_path / "new")]) == 0
    run = Run(Environment(checkpoint_uri=(tmp_path / "new").as_uri()))
    restarted = Net()
    runner = trainer(tmp_path, run=run)
    runner.fit(restarted, loader(shuffle=True), loader())
    assert weights(restarted) == weights(model)
    assert runner.resumed
    assert main(["checkpoint", "convert", str(tmp_path / "8.ckpt"), str(tmp_path / "new")]) == 1
    assert "has checkpoints already: give an empty prefix" in capsys.readouterr().err


def test_s50_the_state_of_every_rank_is_kept(kept: tuple[Path, Net], tmp_path: Path) -> None:
    """A file that three ranks have saved becomes a run's checkpoint of three, and comes back the same."""
    state = ckpt.read(kept[0] / "step=6.ckpt")
    (own,) = state["everstep"]["ranks"]
    state["everstep"]["ranks"] = [own, {"rng": {"torch": torch.ones(3)}}, {"rng": {"torch": torch.zeros(3)}}]
    ckpt.write(str(tmp_path / "three.ckpt"), *ckpt.data_of(state))
    assert main(["checkpoint", "convert", str(tmp_path / "three.ckpt"), str(tmp_path / "run")]) == 0
    assert len(list((tmp_path / "run" / "data").glob("*/rank-*"))) == 3
    assert main(["checkpoint", "convert", str(tmp_path / "run"), str(tmp_path / "again.ckpt")]) == 0
    ranks = ckpt.read(tmp_path / "again.ckpt")["everstep"]["ranks"]
    assert [rank["rng"]["torch"].tolist() for rank in ranks[1:]] == [[1, 1, 1], [0, 0, 0]]
    assert torch.equal(ranks[0]["rng"]["torch"], own["rng"]["torch"])


def test_s89_trust_makes_plain_data_of_an_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {
        "state_dict": Net().state_dict(), "epoch": 3, "global_step": 7, "hyper_parameters": Namespace(width=2),
        "callbacks": {"Mine": {"seen": {1, 2}, "gone": _Gone()}}, "pytorch-lightning_version": "1.5.0",
    }  # fmt: skip
    torch.save(old, tmp_path / "old.ckpt")
    source, target = str(tmp_path / "old.ckpt"), str(tmp_path / "new.ckpt")
    assert main(["checkpoint", "convert", source, target]) == 1
    error = capsys.readouterr().err
    assert "only unpickling can make (argparse.Namespace)" in error
    assert f"everstep checkpoint convert --trust {source} new.ckpt" in error
    del globals()["_Gone"]
    assert main(["checkpoint", "convert", "--trust", source, target]) == 0
    assert "left out, as it is no plain data: callbacks/Mine/gone" in capsys.readouterr().err
    new = torch.load(target, weights_only=True)
    assert new["hyper_parameters"] == {"width": 2}
    assert new["callbacks"] == {"Mine": {"seen": [1, 2]}}
    assert Net.load_from_checkpoint(target).hparams == {"width": 2}


class _Gone:
    """A class that the file has, and the one who reads it has not."""


def test_s83_export_to_safetensors(kept: tuple[Path, Net], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.safetensors"
    for source in (kept[0] / "run", kept[0] / "step=12.ckpt"):
        assert main(["checkpoint", "export", str(source), str(target)]) == 0
        found = safetensors.torch.load_file(target)
        assert torch.equal(found["layer.weight"], kept[1].layer.weight)
    assert main(["checkpoint", "export", str(kept[0] / "run"), str(tmp_path / "m.onnx")]) == 1
    assert "call to_onnx or to_torchscript" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["checkpoint", "explain", "x"])
    assert usage.value.code == 2
