"""save_hyperparameters and load_from_checkpoint: S-85, S-106."""

import dataclasses
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import everstep as L
from everstep.checkpoint import ckpt
from everstep.errors import ConfigurationError
from everstep.trainer.state import dump
from tests.runtime.build import trainer
from tests.runtime.peer import lightning


class Sized(L.LightningModule):
    def __init__(self, width: int = 4, *, rate: float = 0.1, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(3, width)


class Derived(Sized):
    def __init__(self, name: str, width: int) -> None:
        super().__init__(width=width * 2, rate=0.5)


class Config(Mapping[str, Any]):
    """What DictConfig looks like from outside."""

    def __init__(self, **items: Any) -> None:
        self.items_ = items

    def __getitem__(self, key: str) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


def file_of(module: L.LightningModule, folder: Path, datamodule: Any = None) -> str:
    runner = trainer(folder)
    runner.strategy.model, runner.datamodule = module, datamodule
    place = str(folder / "a.ckpt")
    ckpt.write(place, *ckpt.data_of(dump(runner, None)))
    return place


def test_s106_they_print_as_lightnings() -> None:
    class Theirs(lightning.LightningModule):
        def __init__(self, width: int, rates: dict[str, Any], act: Any = torch.relu) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="act")

    class Ours(L.LightningModule):
        def __init__(self, width: int, rates: dict[str, Any], act: Any = torch.relu) -> None:
            super().__init__()
            self.save_hyperparameters(ignore="act")

    ours, theirs = (kind(4, {"b": 1, "a": {"c": 2}}).hparams for kind in (Ours, Theirs))
    assert str(ours) == repr(ours) == "\"rates\": {'b': 1, 'a': {'c': 2}}\n\"width\": 4" == str(theirs)


def test_s106_without_arguments_it_takes_those_of_init() -> None:
    module = Sized(5, extra="x")
    assert module.hparams == {"width": 5, "rate": 0.1, "extra": "x"}
    assert module.hparams.width == 5
    assert module.hparams_initial == module.hparams
    module.hparams.width = 6
    assert (module.hparams["width"], module.hparams_initial.width) == (6, 5)
    with pytest.raises(AttributeError, match=r"no hyper-parameter 'depth'; there are \['extra', 'rate', 'width'\]"):
        _ = module.hparams.depth


def test_s106_the_most_derived_class_wins() -> None:
    assert Derived("n", 3).hparams == {"width": 3, "rate": 0.5, "name": "n"}


def test_s106_names_ignore_and_mappings() -> None:
    class Some(L.LightningModule):
        def __init__(self, a: int, b: int, given: Any = None, how: Any = (), **options: Any) -> None:
            super().__init__()
            self.save_hyperparameters(*how, **options)

    assert Some(1, 2, how=("a",)).hparams == {"a": 1}
    assert "b" not in Some(1, 2, ignore=["b", "how", "options"]).hparams
    settings = {"depth": {"first": 1}}
    module = Some(1, 2, settings, how=(settings,))
    assert module.hparams.depth.first == 1
    assert module._hparams_name == "given"
    assert Some(1, 2, how=(Namespace(c=3),)).hparams == {"c": 3}
    with pytest.raises(ConfigurationError, match=r"Some.__init__ has no such argument; it has \['a', 'b'"):
        Some(1, 2, how=("c",))
    with pytest.raises(ConfigurationError, match="got a int: give names of arguments, or one mapping"):
        Some(1, 2, how=(3,))


def test_s106_a_dataclass() -> None:
    @dataclasses.dataclass(eq=False)
    class Data(L.LightningDataModule):
        size: int = 3

        def __post_init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert Data(5).hparams == {"size": 5}


def test_s85_s115_load_from_checkpoint_builds_with_the_files_hyperparameters(tmp_path: Path) -> None:
    module = Sized(5, rate=0.3)
    place = file_of(module, tmp_path)
    again = Sized.load_from_checkpoint(place)
    assert again.hparams == module.hparams
    assert torch.equal(again.layer.weight, module.layer.weight)
    assert Sized.load_from_checkpoint(Path(place), rate=0.7).hparams.rate == 0.7
    with pytest.raises(ConfigurationError, match=r"another shape: layer.weight \(\[5, 3\] in the checkpoint, \[6,"):
        Sized.load_from_checkpoint(place, width=6)
    assert torch.load(place, weights_only=True)["hyper_parameters"] == {"width": 5, "rate": 0.3}


def test_s85_missing_and_unexpected_keys_are_named(tmp_path: Path) -> None:
    class Other(Sized):
        def __init__(self, width: int = 4) -> None:
            super().__init__(width)
            self.other = self.layer
            del self.layer

    place = file_of(Sized(4), tmp_path)
    expected = (
        "missing in the checkpoint: other.weight, other.bias; unknown to the model: layer.weight, layer.bias. Is it "
        "another model's"
    )
    with pytest.raises(ConfigurationError, match=expected):
        Other.load_from_checkpoint(place)
    Other.load_from_checkpoint(place, strict=False)


def test_s85_a_mapping_argument_comes_back_as_one(tmp_path: Path) -> None:
    class Configured(L.LightningModule):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.save_hyperparameters(config)
            self.layer = nn.Linear(config["width"], 1)

    place = file_of(Configured(Config(width=2, deep=Config(rate=0.1))), tmp_path)
    again = Configured.load_from_checkpoint(place)
    assert again.hparams == {"width": 2, "deep": {"rate": 0.1}}
    assert again.hparams.deep.rate == 0.1
    assert "width" in repr(again.hparams)


def test_s85_what_is_no_plain_data_is_left_out_and_asked_for(tmp_path: Path) -> None:
    class Around(L.LightningModule):
        def __init__(self, backbone: nn.Module, kind: torch.dtype, folder: Path, sizes: tuple[int, ...]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone = backbone

    module = Around(nn.Linear(2, 2), torch.bfloat16, Path("a/b"), (1, 2))
    with pytest.warns(UserWarning, match=r"backbone \(a torch.nn.modules.linear.Linear\)\. Give them to load_from_ch"):
        place = file_of(module, tmp_path)
    with pytest.raises(ConfigurationError, match=r"backbone is a torch.*load_from_checkpoint\(path, backbone=…\)"):
        Around.load_from_checkpoint(place)
    again = Around.load_from_checkpoint(place, backbone=nn.Linear(2, 2))
    assert (again.hparams.kind, again.hparams.folder, again.hparams.sizes) == (torch.bfloat16, "a/b", (1, 2))
    assert torch.equal(again.backbone.weight, module.backbone.weight)


def test_s85_a_datamodule_too(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.seen = 0

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.seen = state_dict["seen"]

    data = Data(7)
    data.seen = 9
    again = Data.load_from_checkpoint(file_of(Sized(), tmp_path, data))
    assert (again.hparams.size, again.seen) == (7, 9)
