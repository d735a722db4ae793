"""self.log: names, defaults, reductions, weights, and who gets to see what when."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.callbacks import ProgressBar
from everstep.errors import ConfigurationError
from everstep.loggers import CSVLogger, Logger
from everstep.strategies import Strategy
from everstep.trainer.logs import Arguments, Logs
from tests.runtime.build import Memory, Net, loader, trainer
from tests.runtime.peer import lightning, quiet


class Values(L.LightningModule):
    """Batches of 4, 4 and 2 of the numbers 0..9; logs the batch's mean."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.arguments = arguments

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", batch[0].mean(), **self.arguments)
        return self.layer(batch[0]).mean()

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("value", batch[0].mean(), **self.arguments)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def numbers() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(10.0).reshape(-1, 1)), batch_size=4)


class Sink(Logger):
    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 4.5),  # weighted by 4, 4, 2
        ({"batch_size": 1}, (1.5 + 5.5 + 8.5) / 3),
        ({"reduce_fx": "sum"}, 15.5),
        ({"reduce_fx": "min"}, 1.5),
        ({"reduce_fx": "max"}, 8.5),
        ({"sync_dist": True}, 4.5),
    ],
)
def test_s70_reductions_over_an_epoch(tmp_path: Path, arguments: dict[str, Any], expected: float) -> None:
    (result,) = trainer(tmp_path).test(Values(**arguments), numbers())
    assert result == {"value": pytest.approx(expected)}
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(Values(on_step=False, on_epoch=True, **arguments), numbers())
    assert float(runner.callback_metrics["value"]) == pytest.approx(expected)


def test_s70_s108_step_and_epoch_fork_the_name(tmp_path: Path) -> None:
    sink = Sink()
    runner = trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=2)
    runner.fit(Values(on_step=True, on_epoch=True, prog_bar=True), numbers())
    assert sink.rows == [(1, {"value_step": 5.5, "epoch": 0}), (2, {"value_epoch": pytest.approx(4.5), "epoch": 0})]
    assert {name: float(v) for name, v in runner.callback_metrics.items()} == {
        "value": pytest.approx(4.5), "value_step": 8.5, "value_epoch": pytest.approx(4.5),
    }  # fmt: skip
    assert set(runner.progress_bar_metrics) == {"value_step", "value_epoch"}
    assert runner.logged_metrics["value_step"].item() == 8.5


def test_s70_values_have_no_dimensions_and_lightnings_types(tmp_path: Path) -> None:
    def seen(package: Any) -> dict[str, tuple[Any, Any, float]]:
        class Module(package.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                third = torch.tensor([batch_idx / 3])
                values = {
                    "one": third, "double": third.double(), "half": third.half(), "brain": third.bfloat16(),
                    "long": torch.tensor(batch_idx), "bool": torch.tensor(batch_idx == 0),
                    "numpy": np.float32(batch_idx / 3), "numpy_long": np.int64(batch_idx),
                }  # fmt: skip
                for name, value in values.items():
                    self.log(name, value, on_step=True, on_epoch=True)
                    self.log(f"{name}_alone", value)
                return self.layer(batch[0]).mean()

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.0)

        flags = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
        runner = package.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **dict.fromkeys(flags, False)
        )
        runner.fit(Module(), numbers())
        return {name: (v.shape, v.dtype, round(float(v), 2)) for name, v in runner.callback_metrics.items()}

    with quiet():
        expected = seen(lightning)
    assert expected["double_epoch"][:2] == (torch.Size([]), torch.float64)
    assert seen(L) == expected


def test_s70_logger_false_keeps_it_from_loggers_alone(tmp_path: Path) -> None:
    sink = Sink()
    runner = trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=1)
    runner.fit(Values(logger=False), numbers())
    assert sink.rows == []
    assert "value" in runner.callback_metrics


def test_s78_c10_values_are_fetched_at_log_steps_only(tmp_path: Path) -> None:
    """A tensor whose conversion to a number is counted stands for one on a device."""

    class Counted(torch.Tensor):
        fetched = 0

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.tolist, torch.Tensor.__bool__):
                Counted.fetched += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    class Module(Values):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("value", batch[0].mean().as_subclass(Counted), on_step=True, on_epoch=True, prog_bar=True)
            return self.layer(batch[0]).mean()

    trainer(tmp_path, max_epochs=3, logger=Sink(), log_every_n_steps=100).fit(Module(), numbers())
    per_epoch = Counted.fetched / 3
    Counted.fetched = 0
    trainer(tmp_path, max_epochs=3, logger=Sink(), log_every_n_steps=1).fit(Module(), numbers())
    assert Counted.fetched - 3 * per_epoch == 9, "one more for each logged step"
    assert per_epoch <= 2


def test_s70_several_loaders_have_names_of_their_own(tmp_path: Path) -> None:
    class Two(Values):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("value", batch[0].mean() + 100 * dataloader_idx)

    first, second = trainer(tmp_path).test(Two(), [numbers(), numbers()])
    assert first == {"value/dataloader_idx_0": pytest.approx(4.5)}
    assert second == {"value/dataloader_idx_1": pytest.approx(104.5)}


def test_s70_logging_in_epoch_hooks(tmp_path: Path) -> None:
    class Hooks(Net):
        def on_train_epoch_end(self) -> None:
            self.log("end", 7.0)

        def on_test_epoch_end(self) -> None:
            self.log_dict({"a": 1.0, "b": torch.tensor(2.0)})

    sink = Sink()
    runner = trainer(tmp_path, max_epochs=1, logger=sink)
    runner.fit(Hooks(), loader())
    assert sink.rows == [(5, {"end": 7.0, "epoch": 0})]
    (result,) = runner.test(Hooks(), loader())
    assert (result["a"], result["b"]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda m: m.log("v", torch.ones(3)), r"a tensor of shape \(3,\)"),
        (lambda m: (m.log("v", torch.ones(1)), m.log("v", torch.ones(3))), r"a tensor of shape \(3,\): log one number"),
        (lambda m: m.log("v", "high"), "a str: log a number"),
        (lambda m: m.log("v", 1.0, reduce_fx="median"), "reduce_fx is 'median'"),
        (lambda m: m.log("v", 1.0, on_step=False, on_epoch=False), "it would log nothing"),
        (
            lambda m: (m.log("v", 1.0), m.log("v", 1.0, prog_bar=True)),
            "in one epoch: prog_bar False and True. Give",
        ),
        (lambda m: m.log(1, 1.0), r"self.log\(1, …\): the name has to be a string, such as '1'"),
        (lambda m: m.log("v/dataloader_idx_0", 1.0), "told apart by /dataloader_idx_… anyway: leave it out"),
        (lambda m: m.log_dict([("v", 1.0)]), "self.log_dict got a list: it takes a dict of names and values"),
        (lambda m: m.log_dict(None), "self.log_dict got a NoneType: it takes a dict"),
        (lambda m: m.log_dict({"v": {"a": 1.0}}), r"self.log\('v'\) got a dict: log a number"),
    ],
)
def test_s70_bad_calls(tmp_path: Path, log: Any, message: str) -> None:
    class Bad(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            log(self)
            return self.loss(batch)

    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path).fit(Bad(), loader())


def test_s70_log_dict_takes_the_arguments_of_log(tmp_path: Path) -> None:
    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict({"a": 1.0, "b": 2.0}, True, on_epoch=True)
            return self.loss(batch)

    runner = trainer(tmp_path)
    runner.fit(Both(), loader())
    assert runner.progress_bar_metrics == {"a_step": 1.0, "b_step": 2.0, "a_epoch": 1.0, "b_epoch": 2.0}


#: Where Lightning lets a module log, and where it does not.
MAY_LOG = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end",
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_end", "on_validation_epoch_end",
)  # fmt: skip
MAY_NOT_LOG = (
    "setup",
    "configure_model",
    "on_fit_start",
    "on_validation_end",
    "on_train_end",
    "on_fit_end",
    "teardown",
)


@pytest.mark.parametrize("hook", [*MAY_LOG, *MAY_NOT_LOG])
def test_s70_hooks_may_log_where_lightnings_may(tmp_path: Path, hook: str) -> None:
    def result(library: Any) -> Any:
        class Model(library.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(3, 1)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return (self.layer(batch[0]) - batch[1]).square().mean()

            def validation_step(self, batch: Any, batch_idx: int) -> None: ...

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        setattr(Model, hook, lambda self, *args, **kwargs: self.log("value", 2.0))
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        runner = library.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **dict.fromkeys(off, False)
        )
        try:
            runner.fit(Model(), loader(), loader())
        except (ConfigurationError, lightning.utilities.exceptions.MisconfigurationException):
            return "refused"
        return {name: float(value) for name, value in runner.callback_metrics.items()}

    with quiet():
        theirs = result(lightning)
        ours = result(L)
    assert ours == theirs == ({"value": 2.0} if hook in MAY_LOG else "refused")


def test_log_outside_of_a_call_says_so_and_an_unattached_module_warns(tmp_path: Path) -> None:
    net = Net()
    with pytest.warns(UserWarning, match=r"Net has no Trainer: what it logs goes nowhere \('free' …\)"):
        net.log("free", 1.0)
    trainer(tmp_path, max_epochs=1).fit(net, loader())
    with pytest.raises(ConfigurationError, match="belongs to no epoch here: call it in a"):
        net.log("late", 1.0)


def test_s70_names_of_functions_are_reductions_too(tmp_path: Path) -> None:
    for function, expected in ((torch.mean, 4.5), (torch.sum, 15.5), (max, 8.5), (torch.min, 1.5)):
        (result,) = trainer(tmp_path).test(Values(reduce_fx=function), numbers(), verbose=False)
        assert result == {"value": pytest.approx(expected)}, function


def test_s70_values_of_several_loaders_under_one_name(tmp_path: Path) -> None:
    class Two(Values):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("value", batch[0].mean() + 100 * dataloader_idx, add_dataloader_idx=False)

    results = trainer(tmp_path).test(Two(), [numbers(), numbers()], verbose=False)
    assert results == [{"value": pytest.approx(54.5)}] * 2


def test_s70_enable_graph_keeps_the_graph(tmp_path: Path) -> None:
    class Module(Values):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch[0]).mean()
            self.log("with", loss, enable_graph=True)
            self.log("without", loss)
            assert self.trainer.callback_metrics["with"].requires_grad
            assert not self.trainer.callback_metrics["without"].requires_grad
            return loss

    trainer(tmp_path, max_epochs=1).fit(Module(), numbers())


def test_s70_rank_zero_only_is_ignored_elsewhere() -> None:
    class Other(Strategy):
        rank = 1  # type: ignore[assignment]

    logs = Logs(Other(), [])
    logs.mode = True
    logs.log("value", 1.0, Arguments(rank_zero_only=True))
    assert logs.callback_metrics == {}
    logs.log("value", 1.0, Arguments())
    assert logs.callback_metrics == {"value": 1.0}


def test_barebones_drops_what_is_logged(tmp_path: Path) -> None:
    runner = L.Trainer(barebones=True, max_epochs=1, default_root_dir=tmp_path)
    runner.fit(Values(), numbers())
    assert runner.callback_metrics == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_s78_no_synchronisation_with_the_device_between_log_steps(tmp_path: Path) -> None:
    class OnDevice(Values):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch[0]).mean()
            self.log("value", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            torch.cuda.set_sync_debug_mode("default")

    module = OnDevice().cuda()
    data = DataLoader(TensorDataset(torch.arange(10.0, device="cuda").reshape(-1, 1)), batch_size=4)
    trainer(tmp_path, max_epochs=2, logger=Sink(), log_every_n_steps=100).fit(module, data)


def test_s70_on_other_ranks_the_means_of_an_epoch_are_of_its_rest_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mean(checkpoints: Memory) -> float:
        runner = trainer(tmp_path, checkpoints, max_epochs=1)
        runner.fit(Values(on_step=False, on_epoch=True), numbers())
        return float(runner.callback_metrics["value"])

    memory = Memory(every_steps=1)
    assert mean(memory) == mean(memory.forget_after(1)) == pytest.approx(4.5)
    assert "self.log" not in capsys.readouterr().out
    other = memory.forget_after(1)
    other.saved[0].rank, other.saved[0].info = None, replace(other.saved[0].info, world_size=2)
    assert mean(other) == pytest.approx((4 * 5.5 + 2 * 8.5) / 6)
    assert "was saved by 2 ranks in the middle of an epoch: what self.log means" in capsys.readouterr().out


# CSV.


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with logger.path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_s05_csv_rows_columns_and_versions(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    for step in range(5):
        logger.log_metrics({"a": step}, step)
    logger.log_metrics({"b": 9}, 4)
    logger.save()
    logger.log_metrics({"c": 1}, 5)
    logger.finalize("success")
    assert [r["a"] for r in rows(logger)] == ["0", "1", "2", "3", "4", ""]
    assert (rows(logger)[4]["b"], rows(logger)[5]["c"]) == ("9", "1")
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert CSVLogger(tmp_path).version == 1


def test_s05_csv_rewinds_to_the_resumed_place(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 0}, 0)
    state = logger.state_dict()
    logger.log_metrics({"a": 1}, 1)
    logger.save()
    again = CSVLogger(tmp_path)
    again.load_state_dict(state)
    assert len(rows(again)) == 2, "nothing is lost while nothing is logged again"
    again.log_metrics({"a": 10}, 1)
    again.save()
    assert [(r["step"], r["a"]) for r in rows(again)] == [("0", "0"), ("1", "10")]


def test_s05_the_default_logger_is_csv_in_the_root_folder(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1, logger=True, log_every_n_steps=1)
    runner.fit(Values(), numbers())
    assert isinstance(runner.logger, CSVLogger)
    assert [r["value"] for r in rows(runner.logger)] == ["1.5", "5.5", "8.5"]
    assert runner.log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert trainer(tmp_path, logger=False).logger is None


# The bar.


def test_s31_the_bar_writes_a_line_per_epoch_into_a_pipe(tmp_path: Path) -> None:
    stream = io.StringIO()
    trainer(tmp_path, callbacks=ProgressBar(stream=stream)).fit(Values(prog_bar=True), numbers())
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["Epoch 0: 3/3", "Epoch 1: 3/3"]
    assert "value 8.5" in lines[0]


def test_s31_the_bar_is_there_by_default_and_can_be_left_out(tmp_path: Path) -> None:
    assert any(isinstance(c, ProgressBar) for c in trainer(tmp_path, enable_progress_bar=True).callbacks)
    assert trainer(tmp_path, enable_progress_bar=False).callbacks == []
