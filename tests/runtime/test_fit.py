"""The loop in one process: what it computes, in which order it calls, when it stops."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

import everstep as L
from everstep.errors import ConfigurationError, NonFiniteLossError
from everstep.sampling import order
from everstep.trainer import waiting
from everstep.trainer.hooks import GONE
from tests.runtime.build import Net, Validated, data, loader, trainer


def by_hand(net: Net, batches: list[Any], accumulate: int = 1, clip: float | None = None) -> dict[str, Any]:
    """The same training as a plain loop."""
    optimizer = SGD(net.parameters(), lr=0.1)
    for index, batch in enumerate(batches, start=1):
        (net.loss(batch) / accumulate).backward()
        if index % accumulate == 0 or index == len(batches):
            if clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return net.state_dict()


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (4, None), (1, 0.05), (4, 0.05)])
def test_the_numbers_are_those_of_a_plain_loop(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    """6 batches: with accumulation of 4 the last window has two, and steps."""
    torch.manual_seed(3)
    ours, plain = Net(), Net()
    plain.load_state_dict(ours.state_dict())
    runner = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    runner.fit(ours, loader())
    expected = by_hand(plain, list(loader()), accumulate, clip)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name])
    assert runner.global_step == -(-6 // accumulate)
    assert runner.current_epoch == 1


def test_clipping_by_value(tmp_path: Path) -> None:
    largest: list[float] = []

    class Watch(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            largest.append(max(float(p.grad.abs().max()) for p in self.parameters() if p.grad is not None))

    trainer(tmp_path, max_epochs=1, gradient_clip_val=0.01, gradient_clip_algorithm="value").fit(Watch(), loader())
    assert max(largest) == pytest.approx(0.01)


@pytest.mark.parametrize(("name", "instead"), list(GONE.items()))
def test_a_hook_that_is_never_called_is_refused(tmp_path: Path, name: str, instead: str) -> None:
    net = type("Custom", (Net,), {name: lambda self, *args: None})()
    with pytest.raises(ConfigurationError, match=f"Custom defines {name}, which is never called: .* to {instead}"):
        trainer(tmp_path).fit(net, loader())


def test_on_exception_sees_it_and_it_goes_on(tmp_path: Path) -> None:
    seen: list[BaseException] = []

    class Watch(L.Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            seen.append(exception)

    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trainer(tmp_path, callbacks=Watch()).fit(Broken(), loader())
    assert [type(error) for error in seen] == [KeyError]


def test_stops_at_steps_epochs_or_when_told(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=-1, max_steps=8)
    runner.fit(Net(), loader())
    assert (runner.global_step, runner.current_epoch) == (8, 2)

    class Enough(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    runner = trainer(tmp_path, callbacks=[Enough()])
    runner.fit(Net(), loader())
    assert runner.global_step == 3


def test_limits_count_batches_or_parts(tmp_path: Path) -> None:
    for limit, expected in ((2, 2), (0.5, 3), (1.0, 6), (100, 6)):
        runner = trainer(tmp_path, max_epochs=1, limit_train_batches=limit)
        runner.fit(Net(), loader())
        assert (runner.global_step, runner.num_training_batches) == (expected, expected)


def test_validation_when_it_is_due(tmp_path: Path) -> None:
    def at(**arguments: Any) -> list[int]:
        found: list[int] = []

        class Watch(L.Callback):
            def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
                found.append(trainer.global_step)

        runner = trainer(tmp_path, num_sanity_val_steps=0, callbacks=Watch(), **arguments)
        runner.fit(Validated(), loader(), loader())
        return found

    assert at() == [6, 12]
    assert at(val_check_interval=0.5) == [3, 6, 9, 12]
    assert at(val_check_interval=4) == [4, 10]
    assert at(check_val_every_n_epoch=2) == [12]
    assert at(limit_val_batches=0) == []


def test_sanity_check_sees_two_batches_and_leaves_no_metrics(tmp_path: Path) -> None:
    batches: list[bool] = []

    class Watch(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            batches.append(trainer.sanity_checking)

        def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
            assert trainer.callback_metrics == {}

    trainer(tmp_path, max_epochs=1, callbacks=Watch()).fit(Validated(), loader(), loader())
    assert batches == [True] * 2 + [False] * 6


def test_evaluation_learns_nothing_and_gives_modes_back(tmp_path: Path) -> None:
    class Modes(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            assert not self.training
            assert not torch.is_grad_enabled()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.layer.training
            assert not self.frozen.training
            return super().training_step(batch, batch_idx)

        def on_train_start(self) -> None:
            self.frozen.eval()

    net = Modes()
    net.frozen = torch.nn.Dropout()
    trainer(tmp_path, val_check_interval=2).fit(net, loader(), loader())


# What configure_optimizers may return.


def scheduler_steps(tmp_path: Path, configure: Any, **more: Any) -> list[float]:
    """The learning rate at each training step."""
    rates: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append(round(trainer.optimizers[0].param_groups[0]["lr"], 6))

    trainer(tmp_path, callbacks=Watch(), **more).fit(Validated(configure), loader(), loader())
    return rates


def halving(optimizer: SGD) -> LambdaLR:
    return LambdaLR(optimizer, lambda count: 0.5**count)


def forms(module: Any) -> list[Any]:
    sgd = SGD(module.parameters(), lr=1.0)
    return [
        sgd,
        [sgd],
        ([sgd], [halving(sgd)]),
        ([sgd], [{"scheduler": halving(sgd), "interval": "step", "frequency": 2}]),
        {"optimizer": sgd},
        {"optimizer": sgd, "lr_scheduler": halving(sgd)},
        {"optimizer": sgd, "lr_scheduler": {"scheduler": halving(sgd), "frequency": 1}},
    ]


CONSTANT, BY_EPOCH = [1.0] * 12, [1.0] * 6 + [0.5] * 6
BY_TWO_STEPS = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.03125, 0.03125]


@pytest.mark.parametrize(
    ("form", "rates"), list(enumerate([CONSTANT, CONSTANT, BY_EPOCH, BY_TWO_STEPS, CONSTANT, BY_EPOCH, BY_EPOCH]))
)
def test_forms_of_configure_optimizers(tmp_path: Path, form: int, rates: list[float]) -> None:
    assert scheduler_steps(tmp_path, lambda module: forms(module)[form]) == rates


def test_reduce_on_plateau_looks_at_its_metric_after_validation(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        sgd = SGD(module.parameters(), lr=1e-9)  # nothing improves
        plateau = ReduceLROnPlateau(sgd, patience=0, factor=0.5, threshold=0.5, min_lr=0, eps=0)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    net = Validated(configure)
    runner = trainer(tmp_path, max_epochs=3)
    runner.fit(net, loader(), loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-9 * 0.25)


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda m: "adam", "returned a str"),
        (lambda m: scheduled(m, interval="batch"), 'it has to be "epoch" or "step"'),
        (lambda m: scheduled(m, frequency=0), "a whole number from 1"),
        (lambda m: plateau(m), "ReduceLROnPlateau needs a metric"),
        (
            lambda m: plateau(m, monitor="vall_loss"),
            "monitors 'vall_loss', which was not logged. Logged so far: val_loss",
        ),
    ],
)
def test_bad_configure_optimizers(tmp_path: Path, configure: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path).fit(Validated(configure), loader(), loader())


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda m: scheduled(m) | {"interval": "step"}, "configure_optimizers returned has the unknown key 'interval'"),
        (lambda m: scheduled(m, intervall="step"), "lr_scheduler dict has the unknown key 'intervall'.*: did you mean"),
    ],
)
def test_s09_a_key_that_nothing_reads_is_warned_of_and_changes_nothing(
    tmp_path: Path, configure: Any, message: str
) -> None:
    runner = trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match=message):
        runner.fit(Net(configure), loader())
    assert runner.lr_scheduler_configs[0].interval == "epoch"
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01), "the scheduler has stepped twice"


def scheduled(module: Any, **more: Any) -> Any:
    sgd = SGD(module.parameters(), 1)
    return {"optimizer": sgd, "lr_scheduler": {"scheduler": StepLR(sgd, 1), **more}}


def plateau(module: Any, **more: Any) -> Any:
    sgd = SGD(module.parameters(), 1)
    return {"optimizer": sgd, "lr_scheduler": {"scheduler": ReduceLROnPlateau(sgd), **more}}


# Bad input.


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("0.3", "returned a str"),
        ({"los": 1}, r"a dict without a tensor under \"loss\" \(it has \['los'\]\)"),
    ],
)
def test_nonsense_from_training_step(tmp_path: Path, returned: Any, message: str) -> None:
    class Bad(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path).fit(Bad(), loader())


def test_a_dict_with_the_loss_is_fine_and_so_is_a_step_without_index(tmp_path: Path) -> None:
    class Dict(Net):
        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            return {"loss": self.loss(batch), "extra": 1}

    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(Dict(), loader())
    assert runner.global_step == 6


@pytest.mark.parametrize(
    ("verb", "name", "step", "message"),
    [
        (
            "fit",
            "training_step",
            lambda self: None,
            r"training_step\(\) cannot be called: it is given \(batch, batch_idx",
        ),
        (
            "fit",
            "training_step",
            lambda self, batch, index, hiddens: None,
            r"\(batch, index, hiddens\) cannot be called",
        ),
        ("fit", "training_step", lambda self, batch, index, optimizer_idx: None, "takes optimizer_idx, which is given"),
        ("fit", "training_step", lambda self, dataloader_iter: None, r"fetches the batches.*take \(batch, batch_idx\)"),
        ("fit", "validation_step", lambda self, a, b, c, d: None, r"is given \(batch, batch_idx, dataloader_idx\)$"),
        ("test", "test_step", lambda self: None, r"test_step\(\) cannot be called"),
        ("predict", "predict_step", lambda self: None, r"predict_step\(\) cannot be called"),
    ],
)
def test_a_step_that_cannot_be_called_is_refused_before_anything_runs(
    tmp_path: Path, verb: str, name: str, step: Any, message: str
) -> None:
    ran = []
    hooks = {f"on_{stage}_start": lambda self: ran.append(1) for stage in ("train", "validation", "test", "predict")}
    module = type("Odd", (Net,), {name: step, **hooks})()
    with pytest.raises(ConfigurationError, match=message):
        getattr(trainer(tmp_path), verb)(module, loader())
    assert not ran


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_steps_own_third_argument_keeps_its_default(tmp_path: Path, verb: str) -> None:
    """`dataloader_idx` is given where there are several loaders, or where it has to be, as by Lightning."""
    seen = []

    class Named(Net):
        def validation_step(self, batch: Any, batch_idx: int, prefix: Any = "val") -> None:
            seen.append(prefix)

        test_step = predict_step = validation_step

    getattr(trainer(tmp_path), verb)(Named(), loader(4))
    getattr(trainer(tmp_path), verb)(Named(), [loader(4), loader(4)])
    assert seen == ["val", 0, 1]


def test_a_non_finite_loss_is_an_error_where_it_is_looked_at(tmp_path: Path) -> None:
    class Diverges(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (float("nan") if self.global_step >= 3 else 1.0)

    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 4 \(epoch 0\): lower the learning rate"):
        trainer(tmp_path, logger=True, log_every_n_steps=2).fit(Diverges(), loader())


def test_missing_pieces(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no train_dataloader: give loaders"):
        trainer(tmp_path).fit(Net())
    with pytest.raises(ConfigurationError, match="LightningModule has no training_step"):
        trainer(tmp_path).fit(L.LightningModule(), loader())
    with pytest.raises(ConfigurationError, match="has no test_step"):
        trainer(tmp_path).test(L.LightningModule(), loader())
    with pytest.raises(ConfigurationError, match="the validation loader is a list with a Tensor inside"):
        trainer(tmp_path).fit(Validated(), loader(), [torch.ones(3)])
    with pytest.raises(ConfigurationError, match="the training loader is empty"):
        trainer(tmp_path).fit(Net(), DataLoader(TensorDataset(torch.ones(0, 3), torch.ones(0, 1)), batch_size=2))
    with pytest.raises(ConfigurationError, match="drop_last"):
        trainer(tmp_path).fit(Net(), loader(samples=3, batch_size=4, drop_last=True))
    with pytest.warns(UserWarning, match="there is no val_dataloader: no validation"):
        trainer(tmp_path, max_epochs=1).fit(Validated(), loader())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_epoch": 3}, TypeError, "no argument 'max_epoch': did you mean 'max_epochs'"),
        ({"xyzzy": 3}, TypeError, "known are accelerator"),
        ({"num_nodes": 4}, ConfigurationError, "everstep launch --nnodes 4"),
        ({"devices": "many"}, ConfigurationError, "a number of devices"),
        ({"precision": 17}, ConfigurationError, "precision=17"),
        ({"strategy": "dpp"}, ConfigurationError, "strategy='dpp'"),
        ({"max_epochs": -2}, ConfigurationError, "at least -1"),
        ({"limit_train_batches": 1.5}, ConfigurationError, "a float is a part, at most 1.0"),
        ({"val_check_interval": 0}, ConfigurationError, "val_check_interval is 0"),
        ({"accumulate_grad_batches": 0}, ConfigurationError, "at least 1"),
        ({"gradient_clip_algorithm": "L2"}, ConfigurationError, "norm"),
        ({"callbacks": [3]}, ConfigurationError, "callbacks has a int"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trainer(tmp_path, **arguments)


def test_an_interval_past_the_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="val_check_interval=7 is more than the 6 batches"):
        trainer(tmp_path, val_check_interval=7).fit(Validated(), loader(), loader())


# Loaders.


class Indices(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


class Collects(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def collected(tmp_path: Path, dataloader: Any, **more: Any) -> list[list[int]]:
    net = Collects()
    trainer(tmp_path, **more).fit(net, dataloader)
    return net.seen


def test_epochs_differ_and_a_seed_gives_them_again(tmp_path: Path) -> None:
    def once() -> list[list[int]]:
        L.seed_everything(4)
        return collected(tmp_path, DataLoader(Indices(), batch_size=10, shuffle=True))

    first, second = once()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert once() == [first, second]


def test_the_users_sampler_and_generator_count(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(Indices(), replacement=True, num_samples=30, generator=generator)
    (batch,) = collected(tmp_path, DataLoader(Indices(), batch_size=30, sampler=sampler), max_epochs=1)
    assert len(batch) == 30
    assert len(set(batch)) < 11


def test_drop_last_and_collate_fn_are_kept(tmp_path: Path) -> None:
    made = DataLoader(Indices(), batch_size=4, drop_last=True, collate_fn=lambda items: torch.tensor(items) * 100)
    assert collected(tmp_path, made, max_epochs=1) == [[0, 100, 200, 300], [400, 500, 600, 700]]


class Counting(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(7))


def test_streams(tmp_path: Path) -> None:
    stream = DataLoader(Counting(), batch_size=3)
    assert collected(tmp_path, stream, max_epochs=1) == [[0, 1, 2], [3, 4, 5], [6]]
    assert collected(tmp_path, stream, max_epochs=1, limit_train_batches=2) == [[0, 1, 2], [3, 4, 5]]


def test_a_streams_last_window_steps(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    runner.fit(Collects(), DataLoader(Counting(), batch_size=3))
    assert runner.global_step == 2


class Unending(Sampler[int]):
    def __iter__(self) -> Any:
        for index in itertools.count():
            assert index < 200_000, "nobody asked for so many"
            yield index % 24


class Long(Unending):
    def __len__(self) -> int:
        return 10**12


class Weighted(Sampler[int]):
    """Draws one after the other, from torch's own generator."""

    def __iter__(self) -> Any:
        return (int(torch.randint(0, 24, ())) for _ in range(len(self)))

    def __len__(self) -> int:
        return 24


@pytest.mark.parametrize("sampler", [Unending, Long])
def test_samplers_without_end(tmp_path: Path, sampler: Any) -> None:
    runner = trainer(tmp_path, max_epochs=-1, max_steps=5)
    runner.fit(Net(), DataLoader(data(), batch_size=4, sampler=sampler()))
    assert runner.global_step == 5


def test_an_order_does_not_depend_on_how_far_it_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(**more: Any) -> Any:
        L.seed_everything(4)
        return collected(tmp_path, DataLoader(list(range(24)), batch_size=4, **more), max_epochs=2)

    whole = seen(sampler=Weighted()), seen(shuffle=True)
    monkeypatch.setattr(order, "_PIECE", 5)
    assert (seen(sampler=Weighted()), seen(shuffle=True)) == whole


class Draws(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randint(0, 10**9, ())


def test_s62_worker_randomness_depends_on_the_position_alone(tmp_path: Path) -> None:
    L.seed_everything(1)
    one = flat(collected(tmp_path, DataLoader(Draws(), batch_size=4, num_workers=1), max_epochs=2))
    torch.rand(5)
    several = DataLoader(Draws(), batch_size=2, num_workers=2, persistent_workers=True)
    assert flat(collected(tmp_path, several, max_epochs=2)) == one, "neither worker nor batch nor own generators matter"
    assert len(set(one)) == 16, "another number for each sample and epoch"


@pytest.mark.parametrize(
    ("seconds", "workers", "cpus", "warns"),
    [(3.0, 0, 4, True), (3.0, 0, 1, False), (1.0, 0, 4, False), (3.0, 3, 4, False)],
)
def test_s62_training_that_waits_for_its_data_says_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, workers: int, cpus: int, warns: bool
) -> None:
    """A clock that goes on by so much with each sample, and by ten times as much in each step."""
    now = [0.0]

    class Slow(Indices):
        def __getitem__(self, index: int) -> int:
            now[0] += seconds
            return index

    class Learns(Collects):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now[0] += 10.0
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(waiting, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "cpus", lambda: cpus)
    monkeypatch.setattr(waiting, "suggested_max_num_workers", lambda ranks: max(1, cpus // ranks - 1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = DataLoader(Slow(), batch_size=2, num_workers=workers)
        said.clear()  # what torch says of that many
        trainer(tmp_path, max_epochs=3).fit(Learns(), made)
    expected = [
        "training has waited for its data for 12 of 22 seconds: give the training DataLoader num_workers=3 (it has 0)"
    ]
    assert [str(warning.message) for warning in said] == expected * warns


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_a_datamodule(tmp_path: Path) -> None:
    calls: list[str] = []

    class Data(L.LightningDataModule):
        def prepare_data(self) -> None:
            calls.append("prepare")

        def setup(self, stage: str | None = None) -> None:
            calls.append(f"setup {stage}")

        def teardown(self, stage: str | None = None) -> None:
            calls.append(f"teardown {stage}")

        def train_dataloader(self) -> Any:
            return loader()

        def val_dataloader(self) -> Any:
            return loader()

        def test_dataloader(self) -> Any:
            return loader()

    runner, net = trainer(tmp_path, max_epochs=1), Validated()
    runner.fit(net, Data())
    runner.test(net, datamodule=Data())
    assert calls == ["prepare", "setup fit", "teardown fit", "prepare", "setup test", "teardown test"]
    assert net.trainer is runner
    assert not hasattr(Net(), "trainer")


def test_a_seed_of_the_run_for_scripts_that_set_none() -> None:
    from everstep import seed

    assert L.seed_everything(123, workers=True) == 123
    assert seed.run_seed() == 123
    with pytest.raises(ValueError, match="out of range"):
        L.seed_everything(2**32)
