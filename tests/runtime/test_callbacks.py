"""Callbacks: what each does, that its state survives a resume, and that contradictions are named."""

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import everstep as L
from everstep.callbacks import (
    BasePredictionWriter,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    RichProgressBarTheme,
    Timer,
    TQDMProgressBar,
)
from everstep.callbacks.early_stopping import EarlyStoppingReason
from everstep.errors import ConfigurationError
from everstep.utilities.model_summary import ModelSummary as Summary
from tests.runtime.build import Memory, Net, data, loader, trainer
from tests.runtime.peer import lightning
from tests.runtime.test_logs import Sink


class Scored(Net):
    """Logs the given scores, one an epoch, as val_loss."""

    def __init__(self, scores: list[float], where: str = "on_validation_epoch_end") -> None:
        super().__init__()
        self.scores = scores
        setattr(self, where, self._score)

    def _score(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", self.scores[self.current_epoch])

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "scores", "epochs", "reason"),
    [
        ({"patience": 2}, [5, 4, 4.5, 4.2, 1], 4, "PATIENCE_EXHAUSTED"),
        ({"patience": 2, "mode": "max"}, [1, 2, 1, 3, 2, 2, 9], 6, "PATIENCE_EXHAUSTED"),
        ({"patience": 1, "min_delta": 0.5}, [5, 4, 3.8, 1], 3, "PATIENCE_EXHAUSTED"),
        ({"stopping_threshold": 3.5}, [5, 4, 3, 2], 3, "STOPPING_THRESHOLD"),
        ({"divergence_threshold": 9}, [5, 4, 10, 2], 3, "DIVERGENCE_THRESHOLD"),
        ({}, [5, float("nan"), 1], 2, "NON_FINITE_METRIC"),
        ({"check_finite": False, "patience": 9}, [5, float("nan"), 1, 1], 4, "NOT_STOPPED"),
        ({"check_on_train_epoch_end": False, "patience": 1}, [5, 6, 1], 2, "PATIENCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("where", ["on_validation_epoch_end", "on_train_epoch_end"])
def test_s51_early_stopping(
    tmp_path: Path, arguments: dict[str, Any], scores: list[float], epochs: int, reason: str, where: str
) -> None:
    if where == "on_train_epoch_end" and "check_on_train_epoch_end" in arguments:
        arguments = {**arguments, "check_on_train_epoch_end": True}
    stopper = EarlyStopping("score", **arguments)
    runner = trainer(tmp_path, max_epochs=len(scores), callbacks=stopper)
    runner.fit(Scored(scores, where), loader(), loader())
    assert runner.current_epoch == epochs
    assert (stopper.stopped_epoch > 0) is (epochs < len(scores))
    assert stopper.stopping_reason is EarlyStoppingReason[reason]


def test_s51_why_it_stopped_goes_into_files_as_lightning_writes_it(tmp_path: Path) -> None:
    theirs = lightning.callbacks.EarlyStopping("score")
    assert [(r.name, r.value) for r in type(theirs.stopping_reason)] == [(r.name, r.value) for r in EarlyStoppingReason]
    stopper = EarlyStopping("score", patience=1)
    assert set(stopper.state_dict()) == set(theirs.state_dict())
    trainer(tmp_path, max_epochs=3, callbacks=stopper).fit(Scored([1, 2, 3]), loader(), loader())
    theirs.load_state_dict(stopper.state_dict())
    again = EarlyStopping("score")
    again.load_state_dict(theirs.state_dict())
    assert again.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert again.stopping_reason_message == stopper.stopping_reason_message is not None


def test_s51_early_stopping_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    scores = [5.0, 4, 4.5, 4.5, 4.5, 4.5]
    kept = Memory(every_steps=4)
    whole = trainer(tmp_path, kept, max_epochs=6, callbacks=EarlyStopping("score", patience=3))
    whole.fit(Scored(scores), loader(), loader())
    assert whole.current_epoch == 5
    for count in range(1, len(kept.saved)):
        stopper = EarlyStopping("score", patience=3)
        runner = trainer(tmp_path, kept.forget_after(count), max_epochs=6, callbacks=stopper)
        runner.fit(Scored(scores), loader(), loader())
        assert runner.current_epoch == 5, count
        assert stopper.best_score == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"patience": -1}, "at least 0"), ({"patience": "x"}, "a number of checks"), ({"min_delta": "x"}, "a number")],
)
def test_early_stopping_with_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EarlyStopping("score", **arguments)


def test_s51_a_monitored_metric_that_is_not_logged_is_named(tmp_path: Path) -> None:
    runner = trainer(tmp_path, callbacks=EarlyStopping("val_acc"))
    with pytest.raises(ConfigurationError, match=r"monitors 'val_acc', which was not logged\. Logged so far: score"):
        runner.fit(Scored([1, 2]), loader(), loader())
    trainer(tmp_path, callbacks=EarlyStopping("val_acc", strict=False)).fit(Scored([1, 2]), loader(), loader())


def test_s51_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopper = EarlyStopping("score", patience=1, verbose=True)
    trainer(tmp_path, max_epochs=4, callbacks=stopper).fit(Scored([2, 1, 3, 4]), loader(), loader())
    assert capsys.readouterr().out.splitlines() == [
        "EarlyStopping: score has improved to 2",
        "EarlyStopping: score has improved to 1, from 2",
        "EarlyStopping: score has not improved in 1 checks; best was 1",
    ]


def decaying(module: nn.Module, interval: str = "epoch", **more: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, **more}}


def test_s52_learning_rates_by_epoch(tmp_path: Path) -> None:
    sink = Sink()
    runner = trainer(tmp_path, max_epochs=3, logger=sink, callbacks=LearningRateMonitor("epoch"))
    runner.fit(Net(decaying), loader())
    assert [(step, row["lr-SGD"]) for step, row in sink.rows] == [(0, 1.0), (6, 0.5), (12, 0.25)]
    assert runner.callback_metrics["lr-SGD"] == 0.25


def test_s56_learning_rates_by_step_momentum_and_weight_decay(tmp_path: Path) -> None:
    sink = Sink()
    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    runner = trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=2, callbacks=monitor)
    runner.fit(Net(lambda module: decaying(module, "step", name="rate")), loader())
    assert [(step, row["rate"]) for step, row in sink.rows] == [(1, 0.5), (3, 0.125), (5, 0.03125)]
    assert (sink.rows[0][1]["rate-momentum"], sink.rows[0][1]["rate-weight_decay"]) == (0.9, 0.01)


def test_s52_the_scheduler_decides_and_groups_and_optimizers_have_names(tmp_path: Path) -> None:
    def groups(module: Any) -> Any:
        return torch.optim.Adam(
            [{"params": [module.layer.weight], "lr": 0.1}, {"params": [module.layer.bias], "lr": 0.2, "name": "bias"}]
        )

    sink = Sink()
    trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=6, callbacks=LearningRateMonitor()).fit(
        Net(groups), loader()
    )
    assert [(step, {n: v for n, v in row.items() if n != "epoch"}) for step, row in sink.rows] == [
        (0, {"lr-Adam/pg1": 0.1, "lr-Adam/bias": 0.2}),
        (5, {"lr-Adam/pg1": 0.1, "lr-Adam/bias": 0.2}),
    ]
    sink.rows.clear()
    trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=1, callbacks=LearningRateMonitor()).fit(
        Net(decaying), loader()
    )
    assert [step for step, _ in sink.rows] == [0], "its scheduler steps by epoch"


def test_s52_without_a_logger_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the Trainer has no logger"):
        trainer(tmp_path, callbacks=LearningRateMonitor()).fit(Net(), loader())


class Deep(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 1000), nn.BatchNorm1d(1000), nn.Linear(1000, 2))
        self.body[0].requires_grad_(False)
        self.example_input_array = torch.zeros(4, 3)

    def forward(self, x: Any) -> Any:
        return self.layer(x), self.body(x)


def test_s53_model_summary() -> None:
    module = Deep()
    module.body.eval()
    summary = Summary(module, max_depth=-1)
    assert summary.layer_names == ["layer", "body", "body.0", "body.1", "body.2"]
    assert summary.layer_types == ["Linear", "Sequential", "Linear", "BatchNorm1d", "Linear"]
    assert summary.param_nums == [4, 8002, 4000, 2000, 2002]
    assert summary.in_sizes[2:] == [[4, 3], [4, 1000], [4, 1000]]
    assert summary.out_sizes[0] == [4, 1]
    assert (summary.total_parameters, summary.trainable_parameters) == (8006, 4006)
    assert summary.model_size == pytest.approx(8006 * 4 / 1e6)
    assert summary.total_training_modes == {"train": 1, "eval": 4}
    text = str(summary)
    for part in ("body.1", "BatchNorm1d", "2.0 K", "eval", "[4, 1000]", "4.0 K     Non-trainable params", "0.032"):
        assert part in text, text
    rows = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in text.splitlines() if line.count("|") > 4}
    assert {name: rows[name] for name in ("layer", "body", "body.2")} == {
        "layer": "train", "body": "eval", "body.2": "eval"
    }  # fmt: skip
    assert module.training
    assert not module.body.training
    assert Summary(module).layer_names == ["layer", "body"]
    assert Summary(module, max_depth=0).layer_names == []
    with pytest.raises(ConfigurationError, match="max_depth=-2"):
        Summary(module, max_depth=-2)


def test_s53_numbers_as_lightning_counts_them() -> None:
    from tests.runtime.peer import lightning

    class Theirs(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = Deep().body

    class Ours(L.LightningModule):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

    from lightning.pytorch.utilities.model_summary import ModelSummary as LightningsSummary

    theirs = Theirs()
    a, b = LightningsSummary(theirs, max_depth=-1), Summary(Ours(theirs.body), max_depth=-1)
    for name in ("layer_names", "layer_types", "param_nums", "total_parameters", "trainable_parameters", "model_size",
                 "total_training_modes"):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("callback", [ModelSummary(max_depth=2), RichModelSummary(max_depth=2)])
def test_s53_the_callbacks_print_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: Any) -> None:
    trainer(tmp_path, max_epochs=1, callbacks=callback).fit(Deep(), loader())
    out = capsys.readouterr().out
    assert "BatchNorm1d" in out
    assert "Non-trainable params" in out


def test_s36_the_summary_is_there_by_default_and_can_be_left_out(tmp_path: Path) -> None:
    def has(**more: Any) -> bool:
        return any(isinstance(c, ModelSummary) for c in trainer(tmp_path, **more).callbacks)

    assert has(enable_model_summary=True)
    assert not has(enable_model_summary=False)
    with pytest.raises(ConfigurationError, match="enable_model_summary=False, but ModelSummary is among"):
        trainer(tmp_path, enable_model_summary=False, callbacks=[ModelSummary()])


def test_timer_ends_the_fit_and_counts_earlier_lives(tmp_path: Path) -> None:
    timer = Timer(duration=timedelta(microseconds=1), verbose=False)
    runner = trainer(tmp_path, max_epochs=5, callbacks=timer)
    runner.fit(Net(), loader())
    assert runner.global_step == 1
    assert timer.time_elapsed() > 0
    assert timer.time_remaining() < 0  # type: ignore[operator]
    by_epoch = trainer(tmp_path, max_epochs=5, callbacks=Timer({"microseconds": 1}, interval="epoch"))
    by_epoch.fit(Net(), loader())
    assert by_epoch.current_epoch == 1
    at_once = trainer(tmp_path, max_epochs=5, callbacks=Timer("00:00:00:00", interval="epoch"))
    at_once.fit(Net(), loader())
    assert at_once.global_step == 0
    later = Timer({"hours": 1})
    later.load_state_dict({"time_elapsed": {"train": 3599.0, "validate": 0.0, "test": 0.0}})
    assert later.time_remaining() == pytest.approx(1.0)
    later.load_state_dict({"time_elapsed": {"train": 3601.0}})
    again = trainer(tmp_path, max_epochs=5, callbacks=later)
    again.fit(Net(), loader())
    assert again.global_step == 0, "its time was over before"


def test_gradient_accumulation_by_epoch(tmp_path: Path) -> None:
    steps: list[int] = []
    note = LambdaCallback(on_train_epoch_end=lambda trainer, module: steps.append(trainer.global_step))
    kept = Memory(every_steps=2)
    runner = trainer(tmp_path, kept, max_epochs=4, callbacks=[GradientAccumulationScheduler({1: 3, 3: 2}), note])
    runner.fit(net := Net(), loader())
    assert steps == [6, 8, 10, 13], "6 batches an epoch, by 1, 3, 3 and 2"
    for count in range(1, len(kept.saved)):
        resumed = trainer(
            tmp_path, kept.forget_after(count), max_epochs=4, callbacks=GradientAccumulationScheduler({1: 3, 3: 2})
        )
        resumed.fit(again := Net(), loader())
        assert resumed.global_step == 13
        assert torch.equal(again.layer.weight, net.layer.weight)
    with pytest.raises(ConfigurationError, match="both say how many batches make a step"):
        trainer(tmp_path, accumulate_grad_batches=5, callbacks=GradientAccumulationScheduler({0: 2})).fit(
            Net(), loader()
        )


def test_lambda_callback_refuses_what_is_no_hook() -> None:
    with pytest.raises(TypeError, match="did you mean 'on_train_start'"):
        LambdaCallback(on_trainstart=print)


class Writer(BasePredictionWriter):
    def __init__(self, interval: Any) -> None:
        super().__init__(interval)
        self.batches: list[Any] = []
        self.whole: Any = None

    def write_on_batch_end(
        self, trainer: Any, module: Any, prediction: Any, indices: Any, batch: Any, index: int, loader: int
    ) -> None:
        self.batches.append((loader, index, indices, prediction.shape))

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, indices: Any) -> None:
        self.whole = predictions, indices


def test_s86_prediction_writer(tmp_path: Path) -> None:
    writer = Writer("batch")
    runner = trainer(tmp_path, callbacks=writer)
    assert runner.predict(Net(), loader(10), return_predictions=False) is None
    assert writer.batches == [
        (0, 0, [0, 1, 2, 3], (4, 1)), (0, 1, [4, 5, 6, 7], (4, 1)), (0, 2, [8, 9], (2, 1)),
    ]  # fmt: skip
    assert runner.predictions == [[]], "nothing is kept"
    writer = Writer("epoch")
    trainer(tmp_path, callbacks=writer).predict(Net(), loader(10), return_predictions=False)
    predictions, indices = writer.whole
    assert [p.shape[0] for p in predictions] == [4, 4, 2]
    assert indices == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]
    assert not writer.batches


class Backwards:
    """A batch sampler."""

    def __iter__(self) -> Any:
        yield from ([9, 8, 7], [6, 5], [4, 3, 2, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_s86_a_prediction_writer_knows_the_batches_of_a_batch_sampler(tmp_path: Path, workers: int) -> None:
    writer = Writer("batch")
    batches = DataLoader(data(10), batch_sampler=Backwards(), num_workers=workers)  # type: ignore[arg-type]
    for _ in range(2):
        trainer(tmp_path, callbacks=writer, limit_predict_batches=2).predict(Net(), batches)
    assert [indices for _, _, indices, _ in writer.batches] == [[9, 8, 7], [6, 5]] * 2


# Bars.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Shown(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("shown", 7.0, prog_bar=True)
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


@pytest.mark.parametrize("kind", [ProgressBar, TQDMProgressBar, RichProgressBar])
def test_s31_bars_show_progress_and_values(tmp_path: Path, kind: Any) -> None:
    stream = Terminal()
    runner = trainer(tmp_path, callbacks=kind(refresh_seconds=0.0, stream=stream))
    runner.fit(Shown(), loader(), loader())
    text = stream.getvalue()
    for part in ("Epoch 0", "Epoch 1", "6/6", "shown", "7", "Validation"):
        assert part in text, (part, text[:2000])
    runner.test(Shown(), loader(), verbose=False)
    tested = stream.getvalue().removeprefix(text)
    assert "Test" in tested
    assert "shown" not in tested, "that was a value of the fit"


def test_s31_a_theme_colours_the_parts_of_a_rich_bar(tmp_path: Path) -> None:
    stream = Terminal()
    theme = RichProgressBarTheme(
        description="red", progress_bar="green", progress_bar_finished="green", batch_progress="blue", time="yellow",
        processing_speed="magenta", metrics="cyan", metrics_text_delimiter=" | ", metrics_format=".3f",
    )  # fmt: skip
    more: Any = {"force_terminal": True, "color_system": "standard", "width": 160}
    bar = RichProgressBar(theme=theme, console_kwargs=more, refresh_seconds=0.0, stream=stream)

    class Two(Shown):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("other", 8.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, callbacks=bar).fit(Two(), loader(), loader())
    text = stream.getvalue()
    for colour, part in ((31, "Epoch 0"), (32, "━"), (34, "6/6"), (35, ""), (36, "other 8.000 | shown 7.000")):
        assert f"\x1b[{colour}m{part}" in text, (colour, part)
    assert "\x1b[33m0:" in text, "the time"


@pytest.mark.parametrize("kind", [ProgressBar, TQDMProgressBar, RichProgressBar])
def test_s31_what_a_bar_shows_can_be_changed(tmp_path: Path, kind: Any) -> None:
    class Mine(kind):  # type: ignore[misc]
        def opened(self, bar: Any) -> None:
            bar.what = f"running {bar.what}"
            super().opened(bar)

        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            assert isinstance(pl_module, Shown)
            metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
            return {"name": "blue", "twice": 2 * metrics.pop("shown", 0.0), **metrics}

    stream = Terminal()
    trainer(tmp_path, callbacks=Mine(refresh_seconds=0.0, stream=stream)).fit(Shown(), loader(), loader())
    for part in ("running Epoch 0", "blue", "twice", "14"):
        assert part in stream.getvalue(), part
    assert "shown" not in stream.getvalue()


def test_s31_a_bars_methods_that_nobody_calls_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Mine defines init_train_tqdm, .* override opened\(bar\)"):

        class Mine(TQDMProgressBar):
            def init_train_tqdm(self) -> Any: ...


def test_s78_a_bar_fetches_values_only_when_it_redraws(tmp_path: Path) -> None:
    class Counted(torch.Tensor):
        fetched = 0

        def __float__(self) -> float:
            Counted.fetched += 1
            return float(self.as_subclass(torch.Tensor))

    class Module(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.logs.progress_bar_metrics["x"] = torch.ones(()).as_subclass(Counted)
            return self.loss(batch)

    bar = ProgressBar(refresh_seconds=1e9, stream=Terminal())
    trainer(tmp_path, max_epochs=1, callbacks=bar).fit(Module(), loader(80))
    assert Counted.fetched == 2, "at the first batch and at the end of the epoch"


def test_conflicting_callbacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="TQDMProgressBar and RichProgressBar both draw progress"):
        trainer(tmp_path, callbacks=[TQDMProgressBar(), RichProgressBar()])
    with pytest.raises(ConfigurationError, match="RichModelSummary and ModelSummary both print"):
        trainer(tmp_path, callbacks=[RichModelSummary(), ModelSummary()])
    with pytest.raises(ConfigurationError, match="enable_progress_bar=False, but ProgressBar is among"):
        L.Trainer(enable_progress_bar=False, callbacks=[ProgressBar()], default_root_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="callbacks has a int"):
        trainer(tmp_path, callbacks=[3])
    for given in (L.Callback, [L.Callback]):
        with pytest.raises(ConfigurationError, match=r"callbacks has the class Callback: give an object of it"):
            trainer(tmp_path, callbacks=given)
    with pytest.raises(ConfigurationError, match=r"train_time_interval=5\): it has to be a datetime.timedelta"):
        ModelCheckpoint(train_time_interval=5)  # type: ignore[arg-type]
    twice = [EarlyStopping("a"), EarlyStopping("a", patience=9)]
    with pytest.raises(ConfigurationError, match=r"two callbacks save their state as \"EarlyStopping"):
        trainer(tmp_path, callbacks=twice)
    trainer(tmp_path, callbacks=[EarlyStopping("a"), EarlyStopping("b")])


def test_a_callback_can_log(tmp_path: Path) -> None:
    class Logs(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.log("mine", 3.0)
            self.log_dict({"more": 4.0})

    runner = trainer(tmp_path, max_epochs=1, callbacks=Logs())
    runner.fit(Net(), loader())
    assert (runner.callback_metrics["mine"], runner.callback_metrics["more"]) == (3.0, 4.0)
    assert len(data()) == 24
