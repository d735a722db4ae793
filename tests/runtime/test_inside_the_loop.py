"""What hooks are given and find is what Lightning shows them: both libraries run the same script."""

import copy
import io
import math
from collections.abc import Callable
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

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Base


def plain(values: Any) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}


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
def test_s32_a_script_that_is_always_started_alike_begins_where_there_is_nothing(tmp_path: Path, word: str) -> None:
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
