"""One-file checkpoints: data only, torch's safe reader reads them, whole or not at all: S-89."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everstep.checkpoint import ckpt
from everstep.errors import ConfigurationError, StorageError
from tests.checkpoint.conftest import same


def checkpoint() -> dict[str, Any]:
    weight = torch.randn(3, 4)
    return {
        "state_dict": {
            "a": weight,
            "tied": weight,
            "half": torch.ones(2, dtype=torch.bfloat16),
            "none": torch.empty(0),
        },
        "odd": {1: (True, None, 2**70, float("nan"), b"\x00", "text"), "where": torch.device("cpu"), "as": torch.int8},
        "array": np.arange(3),
        "epoch": 1,
        "global_step": 2,
    }


def write(place: str, tree: dict[str, Any]) -> None:
    ckpt.write(place, *ckpt.data_of(tree))


@pytest.fixture(params=["path", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "deep" / "a.ckpt") if request.param == "path" else f"memory://{tmp_path.name}/deep/a.ckpt"


def test_s89_what_is_written_comes_back(place: str) -> None:
    before = checkpoint()
    write(place, before)
    again = ckpt.read(place)
    assert same(again, before)
    assert again["state_dict"]["a"].data_ptr() == again["state_dict"]["tied"].data_ptr()
    assert ckpt.exists(place)
    assert ckpt.listed(place.rpartition("/")[0]) == [place]
    if not ckpt.is_url(place):
        torch.load(place, weights_only=True)
    ckpt.delete(place)
    ckpt.delete(place)
    assert not ckpt.exists(place)


def test_s89_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "a.ckpt")
    write(place, checkpoint())
    before = Path(place).read_bytes()

    def breaks(tree: Any, file: Any) -> None:
        file.write(b"half of it")
        raise MemoryError("no more")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(MemoryError):
        write(place, checkpoint())
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert Path(place).read_bytes() == before


def test_s89_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    place = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "callbacks": Bad()}, place)
    with pytest.raises(ConfigurationError, match=r"only unpickling can make.*checkpoint convert --trust .*bad"):
        ckpt.read(place)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigurationError, match=r"checkpoint/callbacks: a .*Bad cannot be saved"):
        write(str(tmp_path / "b.ckpt"), {"callbacks": Bad()})


def test_s89_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path / "here.ckpt"), checkpoint())
    with pytest.raises(ConfigurationError, match=r"there is no checkpoint file .*gone.ckpt; the folder has here.ckpt"):
        ckpt.read(tmp_path / "gone.ckpt")
    with pytest.raises(ConfigurationError, match="there is no checkpoint file memory://nowhere"):
        ckpt.read("memory://nowhere/a.ckpt")
    whole = (tmp_path / "here.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((StorageError, ConfigurationError), match=r"cut.ckpt"):
        ckpt.read(tmp_path / "cut.ckpt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.ckpt")
    with pytest.raises(ConfigurationError, match=r"no checkpoint of a Trainer: it holds a dict with \['weight'\]"):
        ckpt.read(tmp_path / "weights.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises((StorageError, ConfigurationError), match=r"text.ckpt"):
        ckpt.read(tmp_path / "text.ckpt")


def test_s89_a_newer_format_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "new.ckpt")
    write(place, {"state_dict": {}, "everstep": {"format": ckpt.FORMAT + 1, "version": "9.9"}})
    with pytest.raises(ConfigurationError, match=r"has format 2 \(everstep 9.9 wrote it\).* up to format 1. Upgrade"):
        ckpt.read(place)
