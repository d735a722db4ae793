"""Files that are no checkpoints, and files that want to be unpickled: a sentence each, and nothing of theirs runs."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as L
from everstep.checkpoint import ckpt
from everstep.cli import main
from everstep.environment import Environment
from everstep.errors import ConfigurationError, StorageError
from everstep.trainer.run import Run
from tests.runtime.build import Net, loader, trainer


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def plain(path: Path) -> Path:
    runner = trainer(path.parent, max_epochs=1)
    runner.fit(Net(), loader())
    runner.save_checkpoint(path)
    return path


def text(path: Path) -> str:
    path.write_text("# A readme\n\nwith words.\n")
    return "is damaged, or no checkpoint file"


def empty(path: Path) -> str:
    path.touch()
    return "is damaged, or no checkpoint file"


def cut(path: Path) -> str:
    path.write_bytes(plain(path).read_bytes()[:700])
    return "is damaged"


def of_a_newer_version(path: Path) -> str:
    state = ckpt.read(plain(path))
    state["everstep"] |= {"format": 99, "version": "77.0"}
    ckpt.write(str(path), *ckpt.data_of(state))
    return "has format 99 (everstep 77.0 wrote it); this everstep reads up to format 1. Upgrade everstep"


def weights_alone(path: Path) -> str:
    torch.save(Net().state_dict(), path)
    return "is no checkpoint of a Trainer: it holds a dict with ['layer.bias', 'layer.weight']"


def gone(path: Path) -> str:
    return "there is no checkpoint file"


def folder(path: Path) -> str:
    path.mkdir()
    return "there is no checkpoint file"


COMMANDS = [["inspect"], ["verify"], ["convert", "new.ckpt"], ["convert", "prefix"], ["export", "w.safetensors"]]


def run(command: list[str], source: Path, tmp_path: Path) -> int:
    return main(["checkpoint", command[0], str(source), *(str(tmp_path / target) for target in command[1:])])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("make", [text, empty, cut, of_a_newer_version, weights_alone, gone, folder])
def test_s88_nonsense_is_a_sentence(
    command: list[str], make: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "x.ckpt"
    message = make(place)
    assert run(command, place, tmp_path) == 1
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert str(place) in said
    if not (command == ["verify"] and make in (text, empty)):
        assert message in said
    assert "damaged" in said or message in said
    assert not (tmp_path / "new.ckpt").exists()


@pytest.mark.parametrize("make", [text, empty, gone, folder, weights_alone])
def test_s89_trust_in_nonsense(make: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "x.ckpt")
    assert main(["checkpoint", "convert", "--trust", str(tmp_path / "x.ckpt"), str(tmp_path / "new.ckpt")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("everstep: ")
    assert str(tmp_path / "x.ckpt") in said


@pytest.fixture(params=["torch", "older torch", "pickle"])
def evil(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A file that looks like a checkpoint, and what is there if anything of it has run."""
    place, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    state = {"state_dict": Net().state_dict(), "epoch": 0, "global_step": 1, "callbacks": {"mine": Evil(proof)}}
    if request.param == "pickle":
        place.write_bytes(pickle.dumps({"state_dict": {}, "callbacks": Evil(proof)}))
    else:
        torch.save(state, place, _use_new_zipfile_serialization=request.param == "torch")
    return place, proof


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_s89_no_command_unpickles(
    command: list[str], evil: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, evil[0], tmp_path) == 1
    assert "Traceback" not in "".join(capsys.readouterr())
    assert not evil[1].exists()


def test_s89_the_file_would_run_if_it_were_trusted(evil: tuple[Path, Path], tmp_path: Path) -> None:
    main(["checkpoint", "convert", "--trust", str(evil[0]), str(tmp_path / "new.ckpt")])
    assert evil[1].exists()


LOADS: dict[str, Callable[[Path, Path], Any]] = {
    "fit": lambda tmp, path: trainer(tmp).fit(Net(), loader(), ckpt_path=path),
    "test": lambda tmp, path: trainer(tmp).test(Net(), loader(), ckpt_path=path),
    "predict": lambda tmp, path: trainer(tmp).predict(Net(), loader(), ckpt_path=path),
    "load_from_checkpoint": lambda tmp, path: Net.load_from_checkpoint(path),
    "Fabric.load": lambda tmp, path: L.Fabric(accelerator="cpu").load(path),
    "Fabric.load_raw": lambda tmp, path: L.Fabric(accelerator="cpu").load_raw(path, Net()),
}


@pytest.mark.parametrize("load", LOADS)
def test_s89_no_load_unpickles(load: str, evil: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises((ConfigurationError, StorageError), match=r"evil\.ckpt"):
        LOADS[load](tmp_path, evil[0])
    assert not evil[1].exists()


def test_s89_last_and_latest_do_not_unpickle(evil: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    shutil.copy(evil[0], tmp_path / "kept" / "last.ckpt")
    for which in ("last", "latest"):
        runner = trainer(tmp_path, callbacks=[L.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True)])
        with pytest.raises((ConfigurationError, StorageError), match=r"last\.ckpt"):
            runner.fit(Net(), loader(), ckpt_path=which)
    assert not evil[1].exists()


def test_s89_no_file_of_a_run_is_unpickled(evil: tuple[Path, Path], tmp_path: Path) -> None:
    """Whichever of them is replaced by one: its checkpoint is damaged, and that is said."""
    run = tmp_path / "run"
    trainer(tmp_path, run=Run(kept_in(run)), max_epochs=1).fit(Net(), loader())
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert {file.parts[0] for file in files} == {"data", "markers", "owner.json"}
    for number, file in enumerate(files):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(run, copy)
        shutil.copy(evil[0], copy / file)
        assert main(["checkpoint", "verify", str(copy)]) == (file.name != "owner.json")
        main(["checkpoint", "inspect", str(copy)])
        if file.name == "owner.json":
            with pytest.raises(ConfigurationError, match="says whose checkpoints these are, but cannot be read"):
                trainer(tmp_path, run=Run(kept_in(copy)), max_epochs=1).fit(Net(), loader())
        else:  # from the other checkpoint
            trainer(tmp_path, run=Run(kept_in(copy)), max_epochs=1).fit(Net(), loader())
    assert not evil[1].exists()


def kept_in(folder: Path) -> Environment:
    return Environment(checkpoint_uri=folder.as_uri(), checkpoint_every_steps=4)
