"""The order of hooks is Lightning's: both libraries run the same recording module, callback and datamodule."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import everstep as L
from everstep.trainer import hooks
from tests.runtime.build import loader, trainer
from tests.runtime.peer import lightning, quiet

#: Whatever the loop calls.
OF_THE_MODULE = (
    "configure_callbacks", "configure_model", "configure_optimizers", "prepare_data",
    "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader",
    "training_step", "validation_step", "test_step", "predict_step",
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
    "optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "lr_scheduler_step",
    *hooks.HOOKS,
)  # fmt: skip
OF_DATA = (
    "prepare_data", "setup", "teardown",
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
    "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader",
)  # fmt: skip


def recorded(base: type, names: Any, prefix: str, calls: list[str]) -> type:
    """A class that notes each call and then does what its base does."""

    def method(name: str) -> Any:
        original = getattr(base, name)

        signature = inspect.signature(original)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = signature.bind(self, *args, **kwargs).arguments
            told = [f"{key}={described(value)}" for key, value in given.items() if value is not self]
            calls.append(f"{prefix}.{name}({', '.join(told)})")
            return original(self, *args, **kwargs)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return type("Recorded", (base,), {name: method(name) for name in names if hasattr(base, name)})


def described(value: Any) -> str:
    """What an argument is, as far as it is the same in both libraries."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)}{' of a graph' if value.requires_grad else ''}"
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return f"{type(value).__name__}({', '.join(f'{key}: {described(part)}' for key, part in parts)})"
    if value is None or isinstance(value, int | float | str | torch.device):
        return repr(value)
    for kind in ("Trainer", "LightningModule", "LightningDataModule", "LightningOptimizer"):
        if kind in (each.__name__ for each in type(value).__mro__):
            return kind
    return "a function" if callable(value) else type(value).__name__


def sequence(library: Any, make: Any, verb: str, interval: str, data: bool, plateau: bool, loaders: int) -> list[str]:
    calls: list[str] = []

    class Loaders:
        def train_dataloader(self) -> Any:
            return loader()

        def val_dataloader(self) -> Any:
            return loader() if loaders == 1 else [loader() for _ in range(loaders)]

        test_dataloader = predict_dataloader = val_dataloader

    class Net(Loaders, library.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("val_loss", torch.ones(()))
            return {"loss": self.layer(batch[0]).mean(), "index": batch_idx}

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any: ...

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.layer(batch[0])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            made = ReduceLROnPlateau(optimizer) if plateau else StepLR(optimizer, 1)
            scheduler = {"scheduler": made, "interval": interval, "monitor": "val_loss"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    class Data(Loaders, library.LightningDataModule):  # type: ignore[misc, name-defined]
        pass

    callback = recorded(library.Callback, hooks.HOOKS, "callback", calls)()
    module = recorded(Net, OF_THE_MODULE, "module", calls)()
    datamodule = recorded(Data, OF_DATA, "data", calls)() if data else None
    getattr(make(callback), verb)(module, datamodule=datamodule)
    return calls


@pytest.mark.parametrize(
    ("verb", "more", "interval", "data", "plateau"),
    [
        ("fit", {"limit_val_batches": 1}, "epoch", False, False),
        ("fit", {"limit_val_batches": 1}, "step", True, False),
        (
            "fit",
            {"limit_train_batches": 5, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
            "step",
            False,
            False,
        ),
        ("fit", {"val_check_interval": 2, "num_sanity_val_steps": 0}, "epoch", False, True),
        ("fit", {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 1}, "epoch", True, False),
        ("fit", {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, "epoch", True, False),
        ("fit", {"max_steps": 3, "max_epochs": -1}, "step", False, False),
        ("fit", {"fast_dev_run": 2}, "step", False, False),
        ("fit", {"overfit_batches": 1}, "epoch", False, False),
        ("fit", {"limit_train_batches": 0}, "epoch", False, False),
        ("validate", {"limit_val_batches": 2}, "epoch", True, False),
        ("test", {"limit_test_batches": 2}, "epoch", False, False),
        ("predict", {"limit_predict_batches": 2}, "epoch", False, False),
    ],
)
def test_s04_hooks_come_in_lightnings_order_with_its_arguments(
    tmp_path: Path, verb: str, more: Any, interval: str, data: bool, plateau: bool
) -> None:
    compare(tmp_path, verb, more, interval, data, plateau)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_s04_hooks_of_several_loaders_get_lightnings_arguments(tmp_path: Path, verb: str) -> None:
    limits = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}
    compare(tmp_path, verb, limits, "epoch", verb == "fit", False, loaders=2)


def compare(tmp_path: Path, verb: str, more: Any, interval: str, data: bool, plateau: bool, loaders: int = 1) -> None:
    def theirs(callback: Any) -> Any:
        arguments = {
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
            **more,
        }
        off = {"enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
        return lightning.Trainer(callbacks=[callback], **off, **arguments)

    with quiet():
        expected = sequence(lightning, theirs, verb, interval, data, plateau, loaders)

        def make(callback: Any) -> Any:
            return trainer(tmp_path, callbacks=[callback], **more)

        ours = sequence(L, make, verb, interval, data, plateau, loaders)
    assert ours == expected


def test_s04_every_hook_is_in_the_list_that_documents_the_loop() -> None:
    documented = inspect.getdoc(hooks) or ""
    for name in OF_THE_MODULE:
        stage = next((s for s in (*hooks.STAGES, "val") if s in name), "")
        assert name in documented or name.replace(stage, "<stage>") in documented, name
        assert hasattr(L.LightningModule, name) or hasattr(L.Callback, name) or name == "on_predict_model_train", name


def test_s04_every_hook_of_lightnings_callback_is_one_here() -> None:
    names = [name for name in vars(lightning.Callback) if not name.startswith("_")]
    assert len(names) > 30
    assert [name for name in names if not hasattr(L.Callback, name)] == []
