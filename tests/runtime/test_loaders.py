"""What may be given as data, and how it is read."""

import os
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

import everstep as L
from everstep.errors import ConfigurationError
from everstep.sampling.combined import CombinedLoader
from everstep.sampling.loader import Remade
from tests.runtime.build import Memory, Net, Validated, data, loader, trainer
from tests.runtime.peer import lightning, quiet
from tests.runtime.test_arguments import Collects


class Numbers(Dataset[int]):
    def __init__(self, start: int, count: int) -> None:
        self.numbers = range(start, start + count)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]


def numbers(start: int, count: int, batch_size: int = 2, **more: Any) -> DataLoader[int]:
    return DataLoader(Numbers(start, count), batch_size=batch_size, **more)


class Keeps(Collects):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(plain(batch))
        return self.layer(torch.ones(1, 1)).sum()


def flat(batches: Any) -> list[Any]:
    return list(chain.from_iterable(batches))


def plain(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.tolist()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def trained(tmp_path: Path, loaders: Any, **more: Any) -> list[Any]:
    net = Keeps()
    trainer(tmp_path, **{"max_epochs": 1, **more}).fit(net, loaders)
    return net.seen


# Combined loaders.


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_s09_combined_loaders_read_as_lightnings(mode: Any) -> None:
    tree = {"a": range(3), "b": [range(10, 15), range(20, 22)]}
    with quiet():
        theirs = lightning.utilities.CombinedLoader(tree, mode)
        iter(theirs)
        expected, length = list(theirs), len(theirs)
    ours = CombinedLoader(tree, mode)
    assert list(ours) == list(ours) == expected
    assert len(ours) == length


def test_s09_a_combined_loaders_mode_is_checked() -> None:
    with pytest.raises(ValueError, match="mode 'longest' is unknown"):
        CombinedLoader([], "longest")  # type: ignore[arg-type]


def test_s03_a_dict_of_loaders_trains_until_the_longest_ends(tmp_path: Path) -> None:
    loaders = {"a": numbers(0, 4), "b": numbers(10, 3, batch_size=1)}
    assert trained(tmp_path, loaders) == [
        {"a": [0, 1], "b": [10]}, {"a": [2, 3], "b": [11]}, {"a": [0, 1], "b": [12]}
    ]  # fmt: skip
    short = CombinedLoader(loaders, "min_size")
    assert len(trained(tmp_path, short)) == 2
    uneven = CombinedLoader([numbers(0, 4), numbers(10, 3, batch_size=1)], "max_size")
    assert trained(tmp_path, uneven)[-1] == [None, [12]]
    one_by_one = CombinedLoader([numbers(0, 2), numbers(10, 4)], "sequential")
    assert trained(tmp_path, one_by_one) == [[0, 1], [10, 11], [12, 13]]
    assert len(trained(tmp_path, loaders, limit_train_batches=2)) == 2


def test_s03_combined_loaders_are_shuffled_anew_each_epoch_and_resume(tmp_path: Path) -> None:
    def run(memory: Memory) -> list[Any]:
        L.seed_everything(3)
        net = Keeps()
        loaders = [numbers(0, 8, shuffle=True), numbers(100, 4, shuffle=True)]
        trainer(tmp_path, memory, max_epochs=2).fit(net, loaders)
        return net.seen

    memory = Memory(every_steps=1)
    whole = run(memory)
    firsts, seconds = zip(*whole, strict=True)
    epochs = [sorted(flat(firsts[:4])), sorted(flat(firsts[4:]))]
    assert epochs == [list(range(8))] * 2
    assert firsts[:4] != firsts[4:]
    assert sorted(flat(seconds[:4])) == sorted([100, 101, 102, 103] * 2), "the shorter one starts again"
    for saves in (1, 3, 6):
        assert run(memory.forget_after(saves)) == whole[saves:]


def test_s03_evaluations_take_lists_dicts_and_combinations(tmp_path: Path) -> None:
    class Evaluates(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.calls.append((plain(batch), batch_idx, dataloader_idx))
            self.log("mean", sum(plain(batch)) / 2 if isinstance(batch, torch.Tensor) else 0.0, batch_size=1)

    def calls(loaders: Any, **more: Any) -> tuple[list[Any], Any]:
        net = Evaluates()
        results = trainer(tmp_path, **more).test(net, loaders, verbose=False)
        return net.calls, results

    expected = [([0, 1], 0, 0), ([2, 3], 1, 0), ([10, 11], 0, 1)]
    for given in ([numbers(0, 4), numbers(10, 2)], {"x": numbers(0, 4), "y": numbers(10, 2)}):
        found, results = calls(given)
        assert found == expected
        assert results == [{"mean/dataloader_idx_0": 1.5}, {"mean/dataloader_idx_1": 10.5}]
    together = CombinedLoader({"x": numbers(0, 4), "y": numbers(10, 2)}, "max_size_cycle")
    found, results = calls(together)
    assert found == [({"x": [0, 1], "y": [10, 11]}, 0, 0), ({"x": [2, 3], "y": [10, 11]}, 1, 0)]
    assert len(results) == 1
    assert len(calls(together, limit_test_batches=1)[0]) == 1


def test_s03_several_loaders_need_a_step_that_is_told_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"2 test loaders: define Net.test_step\(.*dataloader_idx\)"):
        trainer(tmp_path).test(Net(), [loader(), loader()])


# What is no loader.


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(4, 3), torch.ones(4, 3)],
        [(torch.ones(4, 3), torch.ones(4, 1))] * 3,
        [{"x": torch.ones(4, 3)}],
        [np.ones((4, 3))],
    ],
    ids=["tensors", "tuples", "dicts", "arrays"],
)
def test_c16_a_list_of_batches_is_refused_with_the_way_out(tmp_path: Path, batches: Any) -> None:
    message = r"a (list|dict) with a (Tensor|ndarray) inside: .* give DataLoader\(batches, batch_size=None\)"
    with pytest.raises(ConfigurationError, match=f"the training loader is {message}"):
        trainer(tmp_path).fit(Net(), batches)
    with pytest.raises(ConfigurationError, match=f"the test loader is {message}"):
        trainer(tmp_path).test(Net(), batches)


def test_c16_the_way_out_works(tmp_path: Path) -> None:
    batches = [torch.tensor([1, 2]), torch.tensor([3])]
    assert trained(tmp_path, DataLoader(batches, batch_size=None)) == [[1, 2], [3]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3), "the training loader is a Tensor: give a DataLoader"),
        ("data/", "the training loader is a str"),
        (7, "the training loader is an int"),
        (data(), r"a Dataset: give DataLoader\(dataset, batch_size=…\)"),
        ([], "an empty list"),
        ({"a": 7}, "a dict with a int inside"),
    ],
)
def test_c16_other_things_that_are_no_loaders(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path).fit(Net(), given)


def test_s02_loaders_and_a_datamodule_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="both dataloaders and a datamodule"):
        trainer(tmp_path).fit(Net(), loader(), datamodule=L.LightningDataModule())
    with pytest.raises(ConfigurationError, match="both val_dataloaders and a datamodule"):
        trainer(tmp_path).fit(Net(), val_dataloaders=loader(), datamodule=L.LightningDataModule())
    with pytest.raises(ConfigurationError, match="there is no train_dataloader"):
        trainer(tmp_path).fit(Net(), L.LightningDataModule())


def test_s01_the_model_is_a_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the model is a Linear: it has to be a LightningModule"):
        trainer(tmp_path).fit(torch.nn.Linear(1, 1), loader())  # type: ignore[arg-type]
    unfinished = type("Unfinished", (Net,), {"__init__": lambda self: None})()
    with pytest.raises(ConfigurationError, match=r"Unfinished.__init__ does not call super\(\).__init__\(\)"):
        trainer(tmp_path).fit(unfinished, loader())
    with pytest.raises(ConfigurationError, match=r"nothing to test: give a model, as in trainer.test\(model\)"):
        trainer(tmp_path).test()


# Datamodules.


def test_s02_from_datasets(tmp_path: Path) -> None:
    made = L.LightningDataModule.from_datasets(
        Numbers(0, 6), [Numbers(10, 2), Numbers(20, 2)], test_dataset=Numbers(30, 2), batch_size=2
    )
    assert sorted(flat(plain(list(made.train_dataloader())))) == [0, 1, 2, 3, 4, 5]
    assert [plain(list(part)) for part in made.val_dataloader()] == [[[10, 11]], [[20, 21]]]
    assert trainer(tmp_path).test(Collecting(), made, verbose=False) == [{}]
    with pytest.raises(ConfigurationError, match="there is no predict_dataloader"):
        trainer(tmp_path).predict(Collecting(), made)


def test_s02_a_datamodule_prints_the_sizes_of_its_data_as_lightnings() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(())

    def described(library: Any) -> str:
        class Data(library.LightningDataModule):  # type: ignore[misc,name-defined]
            def train_dataloader(self) -> Any:
                return loader(24)

            def val_dataloader(self) -> Any:
                return [loader(8), DataLoader(Stream())]

            def test_dataloader(self) -> Any:
                return self.not_there_before_setup

        return str(Data())

    assert described(L) == (
        "{Train dataloader: size=24}\n{Validation dataloader: 1. size=8 ; 2. size=NA}\n{Test dataloader: None}\n"
        "{Predict dataloader: None}"
    )
    assert described(lightning) == described(L)


class Collecting(Collects):
    def test_step(self, batch: Any, batch_idx: int) -> Any: ...


def test_s02_the_datamodules_transfer_hooks_stand_in_for_the_modules(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return numbers(0, 2)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch + 100

    class Own(Keeps):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 10

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            raise AssertionError("the datamodule's is called")

    net = Own()
    trainer(tmp_path, max_epochs=1).fit(net, Data())
    assert net.seen == [[100, 110]]


def test_s02_prepare_data_of_both_then_setup_in_every_call(tmp_path: Path) -> None:
    calls: list[str] = []

    class Data(L.LightningDataModule):
        def prepare_data(self) -> None:
            calls.append("data prepares")

        def setup(self, stage: str | None = None) -> None:
            calls.append(f"setup {stage}")
            self.parts = numbers(0, 4)

        def teardown(self, stage: str | None = None) -> None:
            calls.append(f"teardown {stage}")

        def train_dataloader(self) -> Any:
            return self.parts

        test_dataloader = val_dataloader = predict_dataloader = train_dataloader

    class Own(Collecting):
        def prepare_data(self) -> None:
            calls.append("module prepares")

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

        def validation_step(self, batch: Any, batch_idx: int) -> Any: ...

    data, net, runner = Data(), Own(), trainer(tmp_path, max_epochs=1)
    runner.fit(net, data)
    runner.validate(net, data, verbose=False)
    runner.test(net, data, verbose=False)
    assert plain(runner.predict(net, data)) == [[0, 1], [2, 3]]
    expected = []
    for stage in ("fit", "validate", "test", "predict"):
        expected += ["data prepares", "module prepares", f"setup {stage}", f"teardown {stage}"]
    assert calls == expected
    assert data.trainer is runner


def test_s121_loaders_are_there_after_a_test(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        def setup(self, stage: str | None = None) -> None:
            self.parts = numbers(0, 4)

        def test_dataloader(self) -> Any:
            return self.parts

    data, runner = Data(), trainer(tmp_path)
    runner.test(Collecting(), data, verbose=False)
    assert next(iter(data.test_dataloader())).tolist() == [0, 1]
    assert next(iter(runner.test_dataloaders)).tolist() == [0, 1]


def test_s121_of_several_loaders_the_trainer_has_the_list_or_dict(tmp_path: Path) -> None:
    class Several(Validated):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch["a"])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    runner, trains, validates = trainer(tmp_path, max_epochs=1), {"a": loader(), "b": loader()}, [loader(), loader()]
    runner.fit(Several(), trains, CombinedLoader(validates, "sequential"))
    assert runner.train_dataloader == trains
    assert runner.val_dataloaders == validates


def test_s104_a_random_split_in_setup_is_the_seeds(tmp_path: Path) -> None:
    def split() -> list[int]:
        L.seed_everything(42)
        found: list[int] = []

        class Data(L.LightningDataModule):
            def setup(self, stage: str | None = None) -> None:
                first, _ = random_split(Numbers(0, 20), [10, 10])
                found.extend(first.indices)
                self.parts = DataLoader(first, batch_size=5)

            def train_dataloader(self) -> Any:
                return self.parts

        trainer(tmp_path, max_epochs=1).fit(Collects(), Data())
        return found

    first = split()
    torch.rand(3)
    assert split() == first
    assert first != sorted(first)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without one")
def test_s105_pinned_memory_without_a_gpu_is_nothing_to_warn_about(tmp_path: Path) -> None:
    assert trained(tmp_path, numbers(0, 4, pin_memory=True)) == [[0, 1], [2, 3]]
    net, runner = Collecting(), trainer(tmp_path)
    assert runner.test(net, numbers(0, 4, pin_memory=True), verbose=False) == [{}]


def test_what_torch_has_said_of_the_users_loader_is_not_said_again(tmp_path: Path) -> None:
    workers = (os.cpu_count() or 1) + 64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many = numbers(0, 4, num_workers=workers)
    assert trained(tmp_path, many, limit_train_batches=0) == [], "the loader is made again, but not read"
    assert Remade(many, 1).batch_size == 2


def test_s112_fit_takes_the_datamodule_second(tmp_path: Path) -> None:
    made = L.LightningDataModule.from_datasets(TensorDataset(torch.ones(4, 3), torch.ones(4, 1)), batch_size=2)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(Net(), made)
    assert runner.global_step == 2


def test_s76_what_evaluations_return(tmp_path: Path) -> None:
    runner, net = trainer(tmp_path), Validated()
    (result,) = runner.test(net, loader(), verbose=False)
    assert list(result) == ["test_loss"]
    assert isinstance(result["test_loss"], float)
    assert float(runner.callback_metrics["test_loss"]) == result["test_loss"]
    (validated,) = runner.validate(net, loader(), verbose=False)
    assert list(validated) == ["val_loss"]
    predictions = runner.predict(net, loader())
    assert [tuple(part.shape) for part in predictions] == [(4, 1)] * 6
    assert [len(part) for part in runner.predict(net, [loader(), loader(8)])] == [6, 2]
    assert runner.predict(net, loader(), return_predictions=False) is None


def test_s76_names_of_metrics_after_each_call_are_lightnings(tmp_path: Path) -> None:
    def seen(library: Any, runner: Any) -> list[Any]:
        class Logs(library.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(3, 1)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.layer(batch[0]).sum()
                self.log("train", loss, prog_bar=True, on_step=True, on_epoch=True)
                return loss

            def validation_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("val", 1.0)

            def test_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("test", 2.0, prog_bar=True, on_step=True, on_epoch=True)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        net, found = Logs(), []
        for call in ("fit", "test", "validate"):
            results = getattr(runner, call)(net, *[loader()] * (1 + (call == "fit")))
            found.append((results, sorted(runner.callback_metrics), sorted(runner.progress_bar_metrics)))
        return found

    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with quiet():
        expected = seen(lightning, lightning.Trainer(max_epochs=1, accelerator="cpu", **off))
    assert seen(L, trainer(tmp_path, max_epochs=1)) == expected
    assert expected[1] == ([{"test_epoch": 2.0}], ["test", "test_epoch"], ["test_epoch", "test_step"])


def test_s76_values_are_printed_unless_not_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = trainer(tmp_path)
    runner.test(Net(), loader())
    assert "test_loss" in capsys.readouterr().out
    runner.test(Net(), loader(), verbose=False)
    assert capsys.readouterr().out == ""


def test_c01_a_resume_in_the_middle_of_an_epoch_repeats_and_loses_nothing(tmp_path: Path) -> None:
    """Also where configure_optimizers has asked for the number of steps, which makes the loader early."""

    class Asks(Keeps):
        def configure_optimizers(self) -> Any:
            assert self.trainer.estimated_stepping_batches == 10
            return super().configure_optimizers()

    def run(memory: Memory) -> list[Any]:
        L.seed_everything(1)
        net = Asks()
        trainer(tmp_path, memory, max_epochs=2).fit(net, numbers(0, 10, shuffle=True))
        return net.seen

    memory = Memory(every_steps=1)
    whole = run(memory)
    assert sorted(flat(whole[:5])) == list(range(10))
    for saves in range(1, 9):
        assert run(memory.forget_after(saves)) == whole[saves:]
