"""What hooks are given and find is what Lightning shows them: both libraries run the same script."""

import copy
import importlib
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.errors import ConfigurationError, NonFiniteLossError
from tests.runtime.build import Memory, Net, Validated, loader, trainer
from tests.runtime.peer import lightning, quiet


def both(folder: Path, script: Callable[[Any, Callable[..., Any]], Any]) -> tuple[Any, Any]:
    """What the script returns with Lightning, and with Everstep. It is given the library, and what makes a Trainer."""

    def theirs(**more: Any) -> Any:
        off = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
        flags = {**dict.fromkeys(off, False), "accelerator": "cpu", "default_root_dir": folder, "max_epochs": 2}
        return lightning.Trainer(**{**flags, **more})

    with quiet():
        expected = script(lightning, theirs)
    with quiet():
        return expected, script(L, lambda **more: trainer(folder, **more))


def net_of(library: Any) -> Any:
    class Base(library.LightningModule):  # type: ignore[misc, name-defined]
        """A linear model with dropout, and a list of what it was shown."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.layer, self.drop = nn.Linear(3, 1), nn.Dropout(0.5)
            self.seen: list[Any] = []

        def loss(self, batch: Any) -> Any:
            return mse_loss(self.layer(self.drop(batch[0])), batch[1])

        def forward(self, batch: Any) -> Any:
            return self.layer(batch[0])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Base


def plain(values: Any) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in values.items()}


# Outputs.


@pytest.mark.parametrize(
    ("returned", "accumulate"),
    [("loss", 1), ("loss", 2), ("dict", 1), ("dict", 2), ("none", 1), ("none", 2), ("manual", 1), ("manual dict", 1)],
)
def test_s04_s75_outputs_of_a_training_step(tmp_path: Path, returned: str, accumulate: int) -> None:

    def script(library: Any, make: Any) -> Any:
        class Some(net_of(library)):  # type: ignore[misc]
            automatic_optimization = not returned.startswith("manual")

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.loss(batch)
                if returned == "none" and batch_idx == 1:
                    return None
                return {"loss": loss, "more": loss * 2} if returned.endswith("dict") else loss

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                assert isinstance(outputs, dict)
                self.seen.append({name: (round(v.item(), 5), v.requires_grad) for name, v in outputs.items()})

        net = Some()
        make(max_epochs=1, accumulate_grad_batches=accumulate).fit(net, loader())
        return net.seen

    expected, ours = both(tmp_path, script)
    assert len(ours) == 6
    assert ours == expected


def test_c14_outputs_of_several_optimizers_are_a_list(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Two(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append([each["loss"].requires_grad for each in outputs])

    def configure(module: nn.Module) -> Any:
        return [torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2)]

    trainer(tmp_path, max_epochs=1).fit(Two(configure), loader())
    assert seen == [[False, False]] * 6


# Metrics.


def test_s70_an_evaluations_metrics_are_there_at_its_epochs_end(tmp_path: Path) -> None:
    def script(library: Any, make: Any) -> Any:
        class Looks(net_of(library)):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_loss", self.loss(batch))

            def on_validation_epoch_end(self) -> None:
                self.seen.append(float(self.trainer.callback_metrics["val_loss"]))
                self.log("twice", self.trainer.callback_metrics["val_loss"] * 2)

            def on_validation_end(self) -> None:
                self.seen.append(float(self.trainer.callback_metrics["twice"]))

            def test_step(self, batch: Any, batch_idx: int) -> None:
                self.log("test_loss", self.loss(batch))

            def on_test_epoch_end(self) -> None:
                self.seen.append(float(self.trainer.callback_metrics["test_loss"]))

        net, runner = Looks(), make()
        runner.fit(net, loader(), loader())
        runner.test(net, loader(), verbose=False)
        return net.seen

    expected, ours = both(tmp_path, script)
    assert len(ours) == 2 + 2 * 2 + 1, "the sanity check, two epochs, the test"
    assert ours == pytest.approx(expected)


def test_s70_metrics_of_a_trainer_are_lightnings_at_every_moment(tmp_path: Path) -> None:
    def script(library: Any, make: Any) -> Any:
        class Logs(net_of(library)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.loss(batch)
                self.log("loss", loss, on_epoch=True, prog_bar=True)
                self.log("quiet", loss, logger=False)
                return loss

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True, prog_bar=True)

            def on_train_start(self) -> None:
                self.log("once", 3.0)

            def look(self) -> None:
                for name, kind in (("logged_metrics", torch.Tensor), ("progress_bar_metrics", float)):
                    values = {n: v for n, v in getattr(self.trainer, name).items() if n != "v_num"}
                    assert all(isinstance(value, kind) for value in values.values())
                    self.seen.append(plain(values))

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx == 1:  # no log step
                    self.seen.append(plain(self.trainer.logged_metrics))

            def on_train_epoch_end(self) -> None:
                self.look()

            def on_validation_end(self) -> None:
                self.look()

        net, runner = Logs(), make()
        runner.fit(net, loader(), loader())
        net.look()
        return net.seen

    expected, ours = both(tmp_path, script)
    assert len(ours) == 2 * (1 + 2 + 2) + 2 + 2
    assert ours == expected


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_train_end", "on_fit_end", "on_validation_end", "on_predict_epoch_end", "predict_step"]
)
def test_s70_where_nothing_can_be_logged_that_is_said(tmp_path: Path, hook: str) -> None:
    def script(library: Any, make: Any) -> Any:
        class Late(net_of(library)):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        net = Late()
        setattr(net, hook, lambda *args: net.log("value", 1.0))
        call = partial(make().predict, net) if "predict" in hook else partial(make().fit, net, val_dataloaders=loader())
        with pytest.raises(Exception, match=r"self\.log") as raised:
            call(loader())
        return raised.type.__name__

    assert both(tmp_path, script) == ("MisconfigurationException", "ConfigurationError")


def test_s76_each_loader_has_its_own_results(tmp_path: Path) -> None:
    def script(library: Any, make: Any) -> Any:
        class Tested(net_of(library)):  # type: ignore[misc]
            def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
                self.log(f"of_{dataloader_idx}", float(dataloader_idx), add_dataloader_idx=False)
                self.log("loss", self.loss(batch))

            def on_test_epoch_end(self) -> None:
                self.log("all", 7.0)

        return [plain(each) for each in make().test(Tested(), [loader(), loader(8)], verbose=False)]

    expected, ours = both(tmp_path, script)
    assert ours == expected
    assert [set(each) for each in ours] == [
        {"of_0", "loss/dataloader_idx_0", "all"},
        {"of_1", "loss/dataloader_idx_1", "all"},
    ]


# Loggers.


def test_s05_values_of_evaluations_have_lightnings_steps_and_a_logger_of_ones_own_is_told(tmp_path: Path) -> None:
    def script(library: Any, make: Any) -> Any:
        base: Any = lightning.loggers.logger.Logger if library is lightning else L.loggers.Logger
        told: list[Any] = []

        class Own(base):  # type: ignore[misc]
            name = version = "own"

            def log_metrics(self, metrics: Any, step: Any = None) -> None:
                told.append((sorted(set(metrics) - {"epoch"}), step))

            def save(self) -> None:
                told.append("save")

            def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

            def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
                told.append(("saved", Path(checkpoint_callback.best_model_path).exists()))

        class Logs(net_of(library)):  # type: ignore[misc]
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val", self.loss(batch), on_step=True, on_epoch=True)

            def test_step(self, batch: Any, batch_idx: int) -> None:
                self.log("test", self.loss(batch))

        folder = tmp_path / library.__name__
        keep = library.callbacks.ModelCheckpoint(folder, save_last=True)
        net, runner = Logs(), make(logger=Own(), enable_checkpointing=True, callbacks=[keep])
        runner.fit(net, loader(), loader(8))
        runner.test(net, loader(), verbose=False)
        told.pop()  # at the end of the test
        return told

    expected, ours = both(tmp_path, script)
    assert (["val_step"], 3) in ours
    assert ours[-2] == (["test"], 12)
    assert ours == expected


# What a Trainer is doing.


def test_s121_the_state_of_a_trainer(tmp_path: Path) -> None:
    def script(library: Any, make: Any) -> Any:
        states = importlib.import_module(
            "lightning.pytorch.trainer.states" if library is lightning else "everstep.trainer.states"
        )

        class Looks(net_of(library)):  # type: ignore[misc]
            def look(self) -> None:
                runner = self.trainer
                asked = ("training", "validating", "sanity_checking", "testing", "predicting", "evaluating")
                state = runner.state
                self.seen.append([name for name in asked if getattr(runner, name)])
                self.seen.append((str(state.status.value), state.fn.value, state.stage and state.stage.value))
                self.seen.append((state.finished, state.stopped, state.fn == states.TrainerFn.FITTING))

            def validation_step(self, batch: Any, batch_idx: int) -> None: ...

            def test_step(self, batch: Any, batch_idx: int) -> None: ...

            on_fit_start = on_validation_start = on_train_epoch_end = on_test_start = on_predict_start = look

        net, runner = Looks(), make(max_epochs=1)
        runner.fit(net, loader(), loader())
        net.look()
        runner.validate(net, loader(), verbose=False)
        runner.test(net, loader(), verbose=False)
        runner.predict(net, loader())
        net.test_step = lambda *args: 1 / 0
        with pytest.raises(ZeroDivisionError):
            runner.test(net, loader(), verbose=False)
        net.look()
        return net.seen

    expected, ours = both(tmp_path, script)
    assert ours == expected


# Random numbers.


def test_s90_a_model_that_draws_numbers_draws_lightnings(tmp_path: Path) -> None:
    """Dropout in the training, another number drawn in each validation, and two loaders to validate with."""

    def script(library: Any, make: Any) -> Any:
        class Draws(net_of(library)):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.loss(batch)
                self.seen.append(loss.item())
                return loss

            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
                self.seen.append(torch.rand(()).item())

        library.seed_everything(1)
        net = Draws()
        make(max_epochs=3).fit(net, loader(), [loader(8), loader(8)])
        return net.seen, net.layer.weight.tolist()

    expected, ours = both(tmp_path, script)
    assert len(ours[0]) == 3 * (6 + 4) + 4
    assert ours == expected, "to the bit"


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_c01_c05_numbers_that_were_drawn_come_again_after_a_restart(tmp_path: Path, lost: int) -> None:
    class Draws(net_of(L)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(())

    def fit(memory: Memory) -> Any:
        L.seed_everything(1)
        net = Draws()
        trainer(tmp_path, memory, max_epochs=2).fit(net, loader(shuffle=True), loader())
        return net.layer.weight.tolist()

    memory = Memory(every_steps=1)
    assert fit(memory.forget_after(0)) == (whole := fit(memory))
    assert fit(memory.forget_after(len(memory.saved) - lost)) == whole


# Copies.


class Plain(Net):
    """Of a module's level, for pickle."""

    def __init__(self) -> None:
        super().__init__()
        del self.configure

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_end", "on_fit_end"])
def test_s01_a_module_is_copied_and_pickled_wherever_it_is(tmp_path: Path, hook: str) -> None:
    made: list[Any] = []

    def copies(trainer: Any, pl_module: Any, *args: Any) -> None:
        if made:
            return
        pl_module.own = pl_module.optimizers()
        file = io.BytesIO()
        torch.save(pl_module, file)
        file.seek(0)
        made.extend([copy.deepcopy(pl_module), torch.load(file, weights_only=False)])
        for copied in made:
            assert copied.layer.weight.equal(pl_module.layer.weight)
            assert not hasattr(copied, "trainer"), "nor does it drag one along"
            assert type(copied.own) is torch.optim.SGD
            assert copied.own.param_groups[0]["params"][0] is copied.layer.weight

    callback = L.Callback()
    setattr(callback, hook, copies)
    net, runner = Plain(), trainer(tmp_path, callbacks=callback)
    runner.fit(net, loader())
    assert len(made) == 2
    assert net.trainer is runner
    again = trainer(tmp_path, max_epochs=1)
    again.fit(made[0], loader())
    assert made[0].trainer is again


# Losses that are no good.


@pytest.mark.parametrize("logger", [True, False])
def test_s75_a_non_finite_loss_ends_the_fit_at_the_latest_with_its_epoch(tmp_path: Path, logger: bool) -> None:
    class Diverges(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (math.nan if self.current_epoch == 1 else 1.0)

    runner = trainer(tmp_path, logger=logger, callbacks=[ModelCheckpoint(tmp_path, "{step}")])
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 12 \(epoch 1\)"):
        runner.fit(Diverges(), loader())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=6.ckpt"]


def test_s50_weights_after_a_non_finite_loss_are_not_saved(tmp_path: Path) -> None:
    class Diverges(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (math.nan if self.global_step >= 3 else 1.0)

    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 4"):
        trainer(tmp_path, callbacks=[keep]).fit(Diverges(), loader())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda net, x, y: (net.layer(x) - y).square(), r"a loss of shape \(4, 1\): it has to be one number"),
        (lambda net, x, y: (net.layer(x) - y).square().mean().detach(), "a loss that no parameter has a part in: it"),
        (lambda net, x, y: net.layer(x).sum() * 1j, "a loss of torch.complex64: gradients are of a real number"),
        (lambda net, x, y: torch.tensor(1.0), "a loss that no parameter has a part in"),
    ],
)
def test_s75_a_loss_that_cannot_be_differentiated(tmp_path: Path, loss: Any, message: str) -> None:
    class Odd(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss(self, *batch)

    with pytest.raises(ConfigurationError, match=rf"Odd\.training_step returned {message}"):
        trainer(tmp_path).fit(Odd(), loader())


# Restarts.


@pytest.mark.parametrize("word", ["last", "latest"])
def test_s50_a_script_that_is_always_started_alike_begins_where_there_is_nothing(tmp_path: Path, word: str) -> None:
    def start(epochs: int) -> L.Trainer:
        runner = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, save_last=True)], max_epochs=epochs)
        runner.fit(Validated(), loader(), loader(), ckpt_path=word)
        return runner

    with pytest.warns(UserWarning, match=f'ckpt_path="{word}", but there is no .*begins anew'):
        first = start(1)
    assert (first.global_step, first.ckpt_path) == (6, None)
    second = start(2)
    assert second.global_step == 12
    assert second.ckpt_path is not None
    with pytest.raises(ConfigurationError, match=f'ckpt_path="{word}", but there is no'):
        trainer(tmp_path / "empty").validate(Validated(), loader(), ckpt_path=word)
