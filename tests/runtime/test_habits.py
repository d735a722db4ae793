"""What scripts for Lightning do: both libraries run the same, and come to the same."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import everstep as L
from everstep.errors import ConfigurationError
from tests.runtime.build import Net, loader, trainer
from tests.runtime.peer import lightning, quiet

LIBRARIES = [lightning, L]


def make(library: Any, folder: Path, **more: Any) -> Any:
    if library is L:
        return trainer(folder, **more)
    off = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(**{"max_epochs": 1, "logger": False, "accelerator": "cpu", **off, **more})


def net(library: Any, **more: Any) -> Any:
    """A module of either library, with these methods in place of its own."""

    def init(self: Any) -> None:
        library.LightningModule.__init__(self)
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.layer.weight, 0.25)
        torch.nn.init.zeros_(self.layer.bias)

    def loss(self: Any, batch: Any) -> Any:
        return (self.layer(batch[0]) - batch[1]).square().mean()

    methods = {
        "__init__": init,
        "loss": loss,
        "training_step": lambda self, batch, batch_idx: self.loss(batch),
        "validation_step": lambda self, batch, batch_idx, dataloader_idx=0: None,
        "configure_optimizers": lambda self: torch.optim.SGD(self.parameters(), lr=0.1),
        **more,
    }
    return types.new_class("Module", (library.LightningModule,), exec_body=lambda space: space.update(methods))()


@pytest.mark.parametrize("library", LIBRARIES)
def test_s04_batch_hooks_are_told_of_the_loader_only_where_there_are_several(library: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Plain(library.Callback):  # type: ignore[misc, name-defined]
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)

        def on_validation_batch_end(self, *args: Any) -> None:
            seen.append(len(args))

    class Numbered(library.Callback):  # type: ignore[misc, name-defined]
        def on_validation_batch_end(self, *args: Any) -> None:
            seen.append(args[5:])

    def end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen.append("module")

    with quiet():
        module = net(library, on_validation_batch_end=end)
        make(library, tmp_path, callbacks=[Plain()]).validate(module, loader(4), verbose=False)
        make(library, tmp_path, callbacks=[Numbered()]).validate(net(library), [loader(4)] * 2, verbose=False)
    assert seen == [0, 5, "module", (0,), (1,)]


def test_s04_a_hook_that_has_to_be_given_the_loaders_number_gets_it_and_one_that_cannot_is_named(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    class Asks(L.Callback):
        def on_test_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
        ) -> None:
            seen.append(dataloader_idx)

    class Cannot(L.Callback):
        def on_validation_batch_end(  # type: ignore[override]
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None: ...

    trainer(tmp_path, callbacks=[Asks()]).test(Net(), loader(8), verbose=False)
    assert seen == [0, 0]
    with pytest.raises(ConfigurationError, match=r"Cannot.on_validation_batch_end has to take dataloader_idx"):
        trainer(tmp_path, callbacks=[Cannot()]).validate(net(L), [loader(), loader()])


@pytest.mark.parametrize("library", LIBRARIES)
def test_s04_the_state_of_a_callback_is_not_asked_for_before_a_fit_has_begun(library: Any, tmp_path: Path) -> None:
    class Average(library.Callback):  # type: ignore[misc, name-defined]
        def __init__(self, what: str = "a") -> None:
            self.what = what

        @property
        def state_key(self) -> str:
            return str(self._generate_state_key(what=self.what))

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.kept = [parameter.detach().clone() for parameter in pl_module.parameters()]

        def state_dict(self) -> dict[str, Any]:
            return {"kept": self.kept}

    runner = make(library, tmp_path, callbacks=[Average("a"), Average("b")])
    with quiet():
        runner.fit(net(library), loader())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    name = Average.__qualname__
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
    assert {key for key in saved if key.startswith(name)} == {f"{name}{{'what': 'a'}}", f"{name}{{'what': 'b'}}"}
    with pytest.raises((ConfigurationError, RuntimeError), match="state_key"):
        make(library, tmp_path, callbacks=[Average("a"), Average("a")])


@pytest.mark.parametrize("library", LIBRARIES)
def test_s09_in_manual_optimisation_a_plateau_scheduler_needs_no_monitor(library: Any, tmp_path: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.lr_schedulers().step(1.0)

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.8)
        return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer, factor=0.5, patience=1)}

    module = net(library, training_step=training_step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    runner = make(library, tmp_path, max_epochs=1)
    with quiet():
        runner.fit(module, loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == 0.2, "six batches"
    if library is L:
        with pytest.raises(ConfigurationError, match="needs a metric"):
            trainer(tmp_path).fit(net(L, configure_optimizers=configure_optimizers), loader(), loader())


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("as_dict", [False, True])
def test_s09_a_scheduler_beside_a_list_of_optimizers(library: Any, as_dict: bool, tmp_path: Path) -> None:
    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.8)
        scheduler = StepLR(optimizer, 1, gamma=0.5)
        return [optimizer], {"scheduler": scheduler, "interval": "step"} if as_dict else scheduler

    runner = make(library, tmp_path, max_epochs=2)
    with quiet():
        runner.fit(net(library, configure_optimizers=configure_optimizers), loader(8), loader(4))
    assert runner.optimizers[0].param_groups[0]["lr"] == (0.05 if as_dict else 0.2)


def test_s70_a_name_may_be_of_the_steps_and_of_the_hook_at_the_epochs_end(tmp_path: Path) -> None:
    """The pattern of torchmetrics' own pages: the values of a collection in each step, compute() at the end."""

    def ends(library: Any) -> dict[str, float]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            self.log("train/acc", float(batch_idx), on_step=True, on_epoch=False)
            self.log("mean", float(batch_idx), on_step=False, on_epoch=True)
            return self.loss(batch)

        def on_train_epoch_end(self: Any) -> None:
            self.log("train/acc", 100.0)
            self.log("mean", 50.0)

        runner = make(library, tmp_path, max_epochs=2)
        with quiet():
            runner.fit(net(library, training_step=training_step, on_train_epoch_end=on_train_epoch_end), loader())
        return {name: float(value) for name, value in sorted(runner.callback_metrics.items())}

    assert ends(L) == ends(lightning) == {"mean": 50.0, "train/acc": 100.0}
