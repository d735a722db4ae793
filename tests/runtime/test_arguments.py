"""Every argument of the Trainer does what it says, and what cannot work is refused before anything starts."""

import copy
import inspect
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.errors import ConfigurationError
from everstep.loggers import CSVLogger
from everstep.precision import Precision, ScaledPrecision
from everstep.strategies import Strategy
from tests.runtime.build import Net, Validated, data, loader, trainer
from tests.runtime.peer import lightning


class Counts(L.Callback):
    """How many batches of each loop."""

    def __init__(self) -> None:
        self.train = self.validation = self.test = self.predict = self.sanity = 0
        self.at: list[int] = []  # global steps at which a validation began

    def on_train_batch_end(self, *_: Any) -> None:
        self.train += 1

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.at.append(trainer.global_step)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self.sanity += 1
        else:
            self.validation += 1

    def on_test_batch_end(self, *_: Any) -> None:
        self.test += 1

    def on_predict_batch_end(self, *_: Any) -> None:
        self.predict += 1


def fitted(tmp_path: Path, **more: Any) -> tuple[L.Trainer, Counts]:
    counts = Counts()
    runner = trainer(tmp_path, callbacks=counts, **more)
    runner.fit(Validated(), loader(), loader())
    return runner, counts


def test_s03_every_argument_of_lightnings_trainer_is_one_here() -> None:
    theirs, ours = inspect.signature(lightning.Trainer).parameters, inspect.signature(L.Trainer).parameters
    assert len(theirs) > 40
    assert [name for name in theirs if name not in ours] == []


def test_s03_every_argument_is_documented() -> None:
    documented = (L.Trainer.__doc__ or "").replace("limit_*_batches", "limit_train limit_val limit_test limit_predict")
    for name in inspect.signature(L.Trainer).parameters:
        if name != "unknown":
            assert name.replace("_batches", "") in documented, name


def test_s20_max_epochs(tmp_path: Path) -> None:
    runner, counts = fitted(tmp_path, max_epochs=3)
    assert (runner.max_epochs, runner.current_epoch, counts.train) == (3, 3, 18)
    assert trainer(tmp_path, max_epochs=None).max_epochs == 1000
    assert trainer(tmp_path, max_epochs=None, max_steps=5).max_epochs == -1


def test_s21_max_steps_or_epochs_whichever_comes_first(tmp_path: Path) -> None:
    assert fitted(tmp_path, max_epochs=-1, max_steps=8)[0].global_step == 8
    assert fitted(tmp_path, max_epochs=1, max_steps=8)[0].global_step == 6
    runner, counts = fitted(tmp_path, max_steps=2, accumulate_grad_batches=2)
    assert (runner.global_step, counts.train) == (2, 4), "optimizer steps are counted, not batches"


class Says(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_s21_min_epochs_and_min_steps_hold_a_stop_back(tmp_path: Path) -> None:
    def steps(**more: Any) -> int:
        runner = trainer(tmp_path, callbacks=Says(), max_epochs=5, **more)
        runner.fit(Net(), loader())
        return runner.global_step

    assert steps() == 1
    with pytest.warns(UserWarning, match="goes on until min_epochs=0 and min_steps=4"):
        assert steps(min_steps=4) == 4
    with pytest.warns(UserWarning, match="min_epochs=2"):
        assert steps(min_epochs=2) == 12, "at the end of the second epoch"


def test_s21_max_time(tmp_path: Path) -> None:
    for nothing in (timedelta(0), {"seconds": 0}, "00:00:00:00"):
        assert fitted(tmp_path, max_time=nothing)[0].global_step == 0
    assert fitted(tmp_path, max_time=timedelta(microseconds=1))[0].global_step == 1
    assert fitted(tmp_path, max_time="01:00:00:00", max_epochs=2)[0].global_step == 12
    for bad in ("12:00", {"lightyears": 1}):
        with pytest.raises(ConfigurationError, match="max_time="):
            trainer(tmp_path, max_time=bad)


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (1, 1), (0.5, 3), (1.0, 6), (100, 6), (None, 6), (0, 0)])
def test_s22_s23_limits_are_batches_or_parts(tmp_path: Path, limit: Any, batches: int) -> None:
    limits = {f"limit_{stage}_batches": limit for stage in ("train", "val", "test", "predict")}
    counts, net = Counts(), Validated()
    runner = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, callbacks=counts, **limits)
    runner.fit(net, loader(), loader())
    assert counts.train == batches
    runner.validate(net, loader(), verbose=False)
    runner.test(net, loader(), verbose=False)
    runner.predict(net, loader())
    validations = 1 if limit == 0 else 2
    assert (counts.validation, counts.test, counts.predict) == (batches * validations, batches, batches)
    if limit != 0:
        assert (runner.num_training_batches, runner.num_val_batches, runner.num_test_batches) == (
            batches, [batches], [batches]
        )  # fmt: skip


def test_s22_a_part_of_less_than_one_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"0.1 of 6 batches is less than one: give at least 0.17, or a number"):
        trainer(tmp_path, limit_train_batches=0.1).fit(Net(), loader())


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data())


def test_s22_a_part_of_an_unknown_length_is_refused(tmp_path: Path) -> None:
    stream = DataLoader(Endless(), batch_size=4)
    with pytest.raises(ConfigurationError, match="a part of an unknown length: give a number of batches"):
        trainer(tmp_path, limit_train_batches=0.5).fit(Net(), stream)
    with pytest.raises(ConfigurationError, match="a part of a validation loader of unknown length"):
        trainer(tmp_path, limit_val_batches=0.5).fit(Validated(), stream, stream)


@pytest.mark.parametrize(
    ("more", "at"),
    [
        ({}, [6, 12]),
        ({"val_check_interval": 1.0}, [6, 12]),
        ({"val_check_interval": 0.5}, [3, 6, 9, 12]),
        ({"val_check_interval": 4}, [4, 10]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12]),
        ({"val_check_interval": 8, "check_val_every_n_epoch": None}, [8]),
        ({"val_check_interval": 1}, list(range(1, 13))),
        ({"val_check_interval": timedelta(0)}, list(range(1, 13))),
        ({"val_check_interval": "00:00:00:00"}, list(range(1, 13))),
        ({"val_check_interval": {"days": 1}}, []),
    ],
)
def test_s24_validation_by_part_batches_or_time(tmp_path: Path, more: dict[str, Any], at: list[int]) -> None:
    assert fitted(tmp_path, **more)[1].at == at


def test_s24_an_interval_across_epochs_survives_a_resume(tmp_path: Path) -> None:
    from tests.runtime.build import Memory

    memory, counts = Memory(every_steps=7), Counts()
    across = {"val_check_interval": 5, "check_val_every_n_epoch": None, "max_epochs": 3}
    trainer(tmp_path, memory, **across).fit(Validated(), loader(), loader())
    trainer(tmp_path, memory.forget_after(1), callbacks=counts, **across).fit(Validated(), loader(), loader())
    assert counts.at == [10, 15]


@pytest.mark.parametrize(("every", "at"), [(1, [6, 12, 18, 24]), (2, [12, 24]), (3, [18])])
def test_s25_check_val_every_n_epoch(tmp_path: Path, every: int, at: list[int]) -> None:
    assert fitted(tmp_path, max_epochs=4, check_val_every_n_epoch=every)[1].at == at


def test_s25_a_stop_in_the_middle_validates_first(tmp_path: Path) -> None:
    counts = Counts()
    trainer(tmp_path, callbacks=[Says(), counts]).fit(Validated(), loader(), loader())
    assert counts.at == [1]


def test_s31_enable_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, enable_progress_bar=False)
    quiet = capsys.readouterr()
    assert quiet.out + quiet.err == ""
    fitted(tmp_path, enable_progress_bar=True, max_epochs=1)
    shown = capsys.readouterr()
    assert "Epoch 0" in shown.out + shown.err


@pytest.mark.parametrize(("given", "files"), [(None, 1), (True, 1), (False, 0)])
def test_s35_enable_checkpointing(tmp_path: Path, given: bool | None, files: int) -> None:
    runner = trainer(tmp_path, enable_checkpointing=given)
    runner.fit(Net(), loader())
    assert len(list(tmp_path.rglob("*.ckpt"))) == files
    assert (runner.checkpoint_callback is not None) is bool(files)
    mine = ModelCheckpoint(tmp_path / "mine")
    if files:
        assert trainer(tmp_path, enable_checkpointing=given, callbacks=mine).checkpoint_callbacks == [mine]
    else:
        with pytest.raises(ConfigurationError, match="enable_checkpointing=False, but ModelCheckpoint is among"):
            trainer(tmp_path, enable_checkpointing=given, callbacks=mine)


@pytest.mark.parametrize(("given", "batches"), [(True, 1), (3, 3)])
def test_s37_fast_dev_run(tmp_path: Path, given: Any, batches: int) -> None:
    counts = Counts()
    runner = trainer(
        tmp_path, fast_dev_run=given, callbacks=counts, logger=CSVLogger(tmp_path), max_epochs=9, val_check_interval=4
    )
    net = Validated()
    runner.fit(net, loader(), loader())
    runner.test(net, loader(), verbose=False)
    runner.predict(net, loader())
    assert (counts.train, counts.validation, counts.test, counts.predict) == (batches,) * 4
    assert counts.sanity == 0
    assert list(tmp_path.iterdir()) == [], "neither logs nor checkpoints"
    assert runner.logger is not None
    runner.logger.experiment.add_image("whatever a script does with it", 1)  # type: ignore[attr-defined]


class Indices(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


class Collects(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class CollectsBoth(Collects):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.validated.append(batch.tolist())


@pytest.mark.parametrize(("given", "batches"), [(2, 2), (0.4, 2)])
def test_s38_overfit_batches_are_the_same_and_not_shuffled(tmp_path: Path, given: Any, batches: int) -> None:
    net, shuffled = CollectsBoth(), DataLoader(Indices(), batch_size=2, shuffle=True)
    runner = trainer(tmp_path, overfit_batches=given, max_epochs=2, num_sanity_val_steps=0)
    runner.fit(net, shuffled, [shuffled])
    first = [[0, 1], [2, 3]][:batches]
    assert net.seen == first * 2
    assert net.validated == first * 2
    for used in (runner.train_dataloader, runner.val_dataloaders[0]):
        assert isinstance(used.sampler, SequentialSampler)
        assert list(used.batch_sampler)[:2] == [[0, 1], [2, 3]]
    assert isinstance(shuffled.sampler, RandomSampler), "the user's own is left alone"


@pytest.mark.usefixtures("algorithms")
def test_s39_deterministic(tmp_path: Path) -> None:
    trainer(tmp_path, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    trainer(tmp_path, deterministic="warn")
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    trainer(tmp_path, deterministic=None)
    assert torch.are_deterministic_algorithms_enabled(), "None leaves it as it is"
    trainer(tmp_path, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.warns(UserWarning, match="benchmark stays off"):
        trainer(tmp_path, deterministic=True, benchmark=True)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("algorithms")
def test_s40_benchmark(tmp_path: Path) -> None:
    for given in (True, False):
        trainer(tmp_path, benchmark=given)
        assert torch.backends.cudnn.benchmark is given


class Sent(L.loggers.Logger):  # type: ignore[name-defined]
    def __init__(self) -> None:
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)


class Logs(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"log_every_n_steps": 1}, list(range(12))),
        ({"log_every_n_steps": 5}, [4, 9]),
        ({"log_every_n_steps": 2, "accumulate_grad_batches": 2}, [1, 3, 5]),
        ({"log_every_n_steps": 0}, []),
        ({}, []),
    ],
)
def test_s42_log_every_n_steps_counts_optimizer_steps(tmp_path: Path, more: dict[str, Any], steps: list[int]) -> None:
    sent = Sent()
    trainer(tmp_path, logger=sent, **more).fit(Logs(), loader())
    assert sent.steps == steps


def test_s43_logger(tmp_path: Path) -> None:
    one, two = Sent(), Sent()
    runner = trainer(tmp_path, logger=[one, two], log_every_n_steps=6)
    runner.fit(Logs(), loader())
    assert one.steps == two.steps == [5, 11]
    assert (runner.logger, runner.loggers) == (one, [one, two])
    assert trainer(tmp_path, logger=False).logger is None
    assert trainer(tmp_path, logger=True).logger is not None
    assert trainer(tmp_path, logger=None).logger is not None


def test_s44_default_root_dir(tmp_path: Path) -> None:
    runner = trainer(tmp_path / "here", logger=True, log_every_n_steps=1, max_epochs=1)
    runner.fit(Logs(), loader())
    assert str(runner.default_root_dir) == str(tmp_path / "here")
    assert list((tmp_path / "here").rglob("metrics.csv"))


def test_s45_enable_logging(tmp_path: Path) -> None:
    def made(**more: Any) -> L.Trainer:
        return L.Trainer(default_root_dir=tmp_path, **more)

    assert made(enable_logging=False).logger is None
    assert made(enable_logging=False, logger=False).logger is None
    assert made(enable_logging=True).logger is not None
    with pytest.raises(ConfigurationError, match="enable_logging=False, but a logger is given"):
        made(enable_logging=False, logger=Sent())
    with pytest.raises(ConfigurationError, match="enable_logging=True, but logger=False"):
        made(enable_logging=True, logger=False)


@pytest.mark.parametrize(("given", "batches"), [(None, 2), (0, 0), (4, 4), (-1, 6)])
def test_s46_sanity_steps(tmp_path: Path, given: int | None, batches: int) -> None:
    runner, counts = fitted(tmp_path, num_sanity_val_steps=given)
    assert counts.sanity == batches
    assert runner.num_sanity_val_batches == [batches]


def test_s46_a_sanity_check_draws_no_random_numbers(tmp_path: Path) -> None:
    class Draws(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            torch.rand(5)

    def after(steps: int) -> float:
        torch.manual_seed(1)
        net = Draws()
        trainer(
            tmp_path, num_sanity_val_steps=steps, limit_train_batches=1, max_epochs=1, check_val_every_n_epoch=2
        ).fit(net, loader(), loader())
        return float(torch.rand(()))

    assert after(2) == after(0)


def test_s47_the_founding_documents_call(tmp_path: Path) -> None:
    """All named arguments at once (strategies, precisions and profilers have tests of their own)."""
    runner = L.Trainer(
        max_epochs=50, accelerator="auto", devices="auto", strategy="auto", callbacks=[Counts()],
        logger=CSVLogger(tmp_path), enable_progress_bar=True, gradient_clip_val=0.5, gradient_clip_algorithm="norm",
        accumulate_grad_batches=1, val_check_interval=1.0, check_val_every_n_epoch=1, limit_train_batches=1.0,
        limit_val_batches=1.0, fast_dev_run=False, overfit_batches=0.0, log_every_n_steps=50, enable_logging=True,
        default_root_dir=tmp_path,
    )  # fmt: skip
    assert runner.max_epochs == 50


@pytest.mark.parametrize("training", [True, False])
def test_inference_mode(tmp_path: Path, training: bool) -> None:
    seen: list[bool] = []

    class Looks(Net):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            assert not torch.is_grad_enabled()
            seen.append(torch.is_inference_mode_enabled())

    trainer(tmp_path, inference_mode=training).test(Looks(), loader())
    assert set(seen) == {training}


def test_detect_anomaly_names_the_operation(tmp_path: Path) -> None:
    class Nan(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.layer(batch[0]) * 0).sqrt().sum()

    with pytest.raises(RuntimeError, match="returned nan values"), pytest.warns(UserWarning, match="Error detected"):
        trainer(tmp_path, detect_anomaly=True, max_steps=1).fit(Nan(), loader())
    assert not torch.is_anomaly_enabled()
    trainer(tmp_path, max_steps=1).fit(Nan(), loader())


def test_reload_dataloaders_every_n_epochs(tmp_path: Path) -> None:
    made: list[str] = []

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            made.append(f"train {self.trainer.current_epoch}")
            return loader(samples=8 + 4 * self.trainer.current_epoch)

        def val_dataloader(self) -> Any:
            assert self.trainer is not None
            made.append(f"val {self.trainer.current_epoch}")
            return loader()

    runner = trainer(tmp_path, max_epochs=4, reload_dataloaders_every_n_epochs=2, num_sanity_val_steps=0)
    runner.fit(Validated(), Data())
    assert made == ["train 0", "val 0", "train 2", "val 2"]
    assert runner.global_step == 2 + 2 + 4 + 4


def test_a_reloaded_loader_brings_its_own_batch_size(tmp_path: Path) -> None:
    seen: dict[int, list[int]] = {}
    promised: list[Any] = []

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            epoch = self.trainer.current_epoch
            return loader(samples=8 * (epoch + 1), batch_size=4 + 2 * epoch)

    class Sizes(Net):
        def on_train_epoch_start(self) -> None:
            assert self.trainer is not None
            promised.append(self.trainer.num_training_batches)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.setdefault(self.current_epoch, []).append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(Sizes(), Data())
    assert seen == {0: [4, 4], 1: [6, 6, 4], 2: [8, 8, 8]}
    assert promised == [2, 3, 3]


def test_barebones_turns_off_what_costs_and_refuses_it(tmp_path: Path) -> None:
    runner = L.Trainer(barebones=True, default_root_dir=tmp_path, max_epochs=1)
    counts = Counts()
    runner.callbacks.append(counts)
    net = Validated()
    runner.fit(net, loader(), loader())
    assert (runner.loggers, counts.sanity) == ([], 0)
    assert runner.callback_metrics == {}, "self.log does nothing"
    assert list(tmp_path.iterdir()) == []
    for more in ({"logger": True}, {"enable_progress_bar": True}, {"fast_dev_run": True}, {"detect_anomaly": True},
                 {"log_every_n_steps": 5}, {"num_sanity_val_steps": 2}):  # fmt: skip
        with pytest.raises(ConfigurationError, match=rf"barebones=True .*{next(iter(more))}="):
            L.Trainer(barebones=True, **more)  # type: ignore[arg-type]


def test_plugins_are_another_way_to_give_seams(tmp_path: Path) -> None:
    precision, strategy = Precision(), Strategy()
    runner = trainer(tmp_path, plugins=[precision, strategy])
    assert runner.precision_plugin is precision
    assert runner.strategy is strategy
    with pytest.raises(ConfigurationError, match="plugins has a str: give a Precision or a Strategy"):
        trainer(tmp_path, plugins="LightningEnvironment")


def test_model_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model_registry is Lightning's own service"):
        trainer(tmp_path, model_registry="somewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"check_val_every_n_epoch": None}, "val_check_interval=None is a part of one: give a number of batches"),
        ({"check_val_every_n_epoch": None, "val_check_interval": 0.5}, "val_check_interval=0.5 is a part of one"),
        ({"val_check_interval": "tomorrow"}, r"a time has to be .DD:HH:MM:SS"),
        ({"min_steps": -1}, "at least 0"),
        ({"overfit_batches": 1.5}, "a float is a part"),
        ({"fast_dev_run": -1}, "at least 0"),
        ({"reload_dataloaders_every_n_epochs": -1}, "at least 0"),
        ({"gradient_clip_val": -1.0}, "at least 0"),
        ({"log_every_n_steps": True}, "a whole number"),
        ({"enable_logging": "yes"}, "give True or False"),
        ({"deterministic": "yes"}, "deterministic='yes': give True or False or None or 'warn'"),
        ({"inference_mode": "x"}, "give True or False"),
        ({"min_epochs": 3, "max_epochs": 2}, "min_epochs=3 is more than max_epochs=2"),
        ({"min_steps": 3, "max_steps": 2}, "min_steps=3 is more than max_steps=2"),
    ],
)
def test_s03_wrong_values_and_combinations(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, **arguments)


def test_s111_what_a_script_asks_its_trainer(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=7)
    assert runner.max_epochs == 7
    assert runner.precision == "32-true"
    seen: list[Any] = []

    class Asks(Validated):
        def configure_optimizers(self) -> Any:
            seen.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            trainer = self.trainer
            seen.append((trainer.training, trainer.validating, trainer.is_last_batch))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append((self.trainer.training, self.trainer.validating, self.trainer.evaluating))

    runner = trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=1, accumulate_grad_batches=2)
    with pytest.raises(ConfigurationError, match="ask in configure_optimizers"):
        _ = runner.estimated_stepping_batches
    runner.fit(Asks(), loader(), loader())
    assert seen == [1, (False, False, True), (True, False, False), (True, False, True), (False, True, True)]
    assert runner.estimated_stepping_batches == 1


def test_s43_loggers_may_be_set(tmp_path: Path) -> None:
    """As Lightning's may; to none, one or several."""
    first, second = CSVLogger(tmp_path, name="first"), CSVLogger(tmp_path, name="second")
    runner = trainer(tmp_path, max_epochs=1, log_every_n_steps=1)

    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 1.0)
            return self.loss(batch)

    runner.logger = first
    runner.fit(Logs(), loader())
    runner.loggers = [second]
    assert (runner.logger, runner.loggers, runner.log_dir) == (second, [second], second.log_dir)
    runner.validate(Validated(), loader(), verbose=False)
    assert "loss" in Path(first.log_dir, "metrics.csv").read_text()
    assert "val_loss" in Path(second.log_dir, "metrics.csv").read_text()
    runner.logger = None
    assert (runner.logger, runner.loggers) == (None, [])
    with pytest.raises(ConfigurationError, match="give True, False or a Logger"):
        runner.loggers = [tmp_path]  # type: ignore[list-item]


def test_s111_the_strategy_tells_what_it_works_on(tmp_path: Path) -> None:
    runner, net = trainer(tmp_path, max_epochs=1), Net()
    strategy = runner.strategy
    assert (strategy.model, strategy.optimizers, strategy.precision_plugin) == (None, [], runner.precision_plugin)
    runner.fit(net, loader())
    assert strategy.model is strategy.lightning_module is runner.model is net
    assert strategy.optimizers is runner.optimizers
    assert isinstance(runner.optimizers[0], torch.optim.SGD)
    assert runner.scaler is None
    assert trainer(tmp_path, precision=ScaledPrecision("cpu")).scaler is not None


def test_s111_interrupted_tells_of_the_last_call(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyboardInterrupt

    runner = trainer(tmp_path, max_epochs=1)
    assert not runner.interrupted
    with pytest.raises(KeyboardInterrupt):
        runner.fit(Fails(), loader())
    assert runner.interrupted
    runner.fit(Net(), loader())
    assert not runner.interrupted


def test_s11_init_module_makes_layers_where_and_as_they_train(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1, precision="64-true")
    with runner.init_module():
        assert torch.nn.Linear(3, 1).weight.dtype is torch.float64
    with runner.init_module(empty_init=True):
        net = Net()
    assert net.layer.weight.is_meta
    runner.fit(net, loader())
    assert net.layer.weight.isfinite().all()


def test_s03_a_trainer_can_be_copied(tmp_path: Path) -> None:
    """Before a call, and after one in which its loaders were left in the middle of their data."""
    first = copy.deepcopy(trainer(tmp_path, max_steps=2, max_epochs=-1))
    first.fit(net := Net(), loader())
    second = copy.deepcopy(first)
    assert (first.global_step, second.global_step) == (2, 2)
    assert second.lightning_module is not net
    second.max_steps = 3
    second.fit(copy.deepcopy(net), loader())
    assert (first.global_step, second.global_step) == (2, 3)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"max_epochs": 3}, 18),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, 6),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1}, math.inf),
    ],
)
def test_s01_estimated_stepping_batches(tmp_path: Path, more: dict[str, Any], expected: float) -> None:
    seen: list[float] = []

    def configure(module: Any) -> Any:
        seen.append(module.trainer.estimated_stepping_batches)
        return torch.optim.SGD(module.parameters(), lr=0.1)

    trainer(tmp_path, callbacks=Says(), **more).fit(Net(configure), loader())
    assert seen == [expected]
