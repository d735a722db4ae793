"""What a LightningModule can do beside its steps."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.errors import ConfigurationError
from everstep.precision import Precision
from everstep.strategies import Strategy
from tests.runtime.build import Net, Validated, data, loader, trainer
from tests.runtime.peer import lightning


def test_s01_every_public_name_of_lightnings_module_is_one_here() -> None:
    # Left out: what belongs to Fabric or TPUs' own loop, and the deprecated.
    left_out = {"fabric", "device_mesh", "print", "on_gpu", "half", "double", "remove_ignored_hparams"}
    names = {n for n in dir(lightning.LightningModule) if not n.startswith("_")} - left_out
    ours = set(dir(L.LightningModule))
    missing = sorted(name for name in names if name not in ours and "jit" not in name)
    assert len(names) > 100
    assert missing == ["CHECKPOINT_HYPER_PARAMS_KEY", "CHECKPOINT_HYPER_PARAMS_NAME", "CHECKPOINT_HYPER_PARAMS_TYPE",
                       "configure_sharded_model", "to_tensorrt"]  # fmt: skip


def test_s01_freeze_and_unfreeze() -> None:
    net = Net()
    net.freeze()
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training
    net.unfreeze()
    assert all(p.requires_grad for p in net.parameters())
    assert net.training


def test_s01_log_dict_is_log_for_each(tmp_path: Path) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict({"a": 1.0, "b": torch.tensor(2.0)}, on_step=False, on_epoch=True)
            return self.loss(batch)

    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(Logs(), loader())
    assert {name: float(value) for name, value in runner.callback_metrics.items()} == {"a": 1.0, "b": 2.0}


def test_s01_without_a_trainer_it_is_a_torch_module() -> None:
    net = Net()
    assert (net.current_epoch, net.global_step, net.global_rank, net.logger, net.loggers) == (0, 0, 0, None, [])
    assert (net.device, net.dtype, net.on_gpu) == (torch.device("cpu"), torch.float32, False)
    with pytest.warns(UserWarning, match="Net has no Trainer"):
        net.log("outside", 1.0)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.trace"):
        traced = torch.jit.trace(net.layer, torch.ones(1, 3))
    assert torch.equal(traced(torch.ones(1, 3)), net.layer(torch.ones(1, 3)))


def test_c15_an_unattached_module_can_be_looked_at_and_compiled() -> None:
    net = Net()
    assert not hasattr(net, "trainer")
    assert getattr(net, "trainer", None) is None
    assert "training_step" in {name for name, _ in inspect.getmembers(net)}, "asks for every attribute"
    assert copy.deepcopy(net).layer.weight.equal(net.layer.weight)
    batch = (torch.ones(2, 3), torch.ones(2, 1))
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.trace"):
        assert torch.jit.trace(net, (batch,))(batch).equal(net(batch))


def test_s01_all_gather_alone_gives_the_data_back(tmp_path: Path) -> None:
    net = Net()
    trainer(tmp_path, max_epochs=1).fit(net, loader())
    gathered = net.all_gather({"x": torch.ones(2), "n": 3})
    assert torch.equal(gathered["x"], torch.ones(2))
    assert int(gathered["n"]) == 3


def test_s01_configure_model_makes_layers_in_every_call(tmp_path: Path) -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.layer

        def configure_model(self) -> None:
            if not hasattr(self, "layer"):
                self.layer = torch.nn.Linear(3, 1)

    net = Late()
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(net, loader())
    made = net.layer
    runner.test(net, loader(), verbose=False)
    assert net.layer is made
    trainer(tmp_path).test(Late(), loader(), verbose=False)


def test_s04_configure_callbacks_take_the_place_of_the_trainers(tmp_path: Path) -> None:
    class Watch(L.Callback):
        def __init__(self) -> None:
            self.count = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.count += 1

    class Other(Watch):
        pass

    mine, theirs, other = Watch(), Watch(), Other()

    class Brings(Net):
        def configure_callbacks(self) -> Any:
            return mine

    runner = trainer(tmp_path, max_epochs=1, callbacks=[theirs, other])
    runner.fit(Brings(), loader())
    assert (mine.count, theirs.count, other.count) == (6, 0, 6)
    assert mine in runner.callbacks
    assert theirs not in runner.callbacks


def test_s04_a_callback_that_monitors_sees_what_the_modules_epoch_end_has_logged(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(trainer.callback_metrics.get("late"))

    class Monitors(Looks):
        monitors = True

    class Late(Net):
        def on_train_epoch_end(self) -> None:
            self.log("late", 7.0)

    trainer(tmp_path, max_epochs=1, callbacks=[Monitors(), Looks()]).fit(Late(), loader())
    assert seen[0] is None
    assert float(seen[1]) == 7.0


def test_s01_transfer_hooks_and_the_seams_they_go_through(tmp_path: Path) -> None:
    """In order: the precision's format, before, the device, after. What is not overridden is not called."""
    calls: list[str] = []

    class Doubles(Precision):
        def convert_input(self, batch: Any) -> Any:
            calls.append("format")
            return batch

    class Elsewhere(Strategy):
        def to_device(self, batch: Any) -> Any:
            calls.append("device")
            return super().to_device(batch)

    class Hooked(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append(f"before {dataloader_idx}")
            return batch

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append(f"after {dataloader_idx}")
            return batch

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any: ...

    one = DataLoader(data(4), batch_size=4)
    trainer(tmp_path, precision=Doubles(), strategy=Elsewhere()).test(Hooked(), [one, one], verbose=False)
    assert calls == ["format", "before 0", "device", "after 0", "format", "before 1", "device", "after 1"]
    calls.clear()
    trainer(tmp_path).test(Net(), one, verbose=False)
    assert calls == []


def test_s01_batches_of_any_shape_go_to_the_device() -> None:
    from collections import namedtuple

    from everstep.strategies.base import moved

    pair = namedtuple("pair", "x y")
    meta = torch.device("meta")
    batch = {"a": [torch.ones(1)], "b": pair(torch.ones(2), "text"), "c": (1, torch.ones(3))}
    there = moved(batch, meta)
    assert there["a"][0].device == there["b"].x.device == there["c"][1].device == meta
    assert isinstance(there["b"], pair)
    assert there["b"].y == "text"


def test_s01_only_overridden_hooks_are_called(tmp_path: Path) -> None:
    """A base class's hook is never entered in a step."""
    called: list[str] = []

    def note(name: str) -> Any:
        return lambda *args, **kwargs: called.append(name)

    names = ["on_train_batch_start", "on_before_backward", "optimizer_step", "backward", "on_after_batch_transfer"]
    patch = pytest.MonkeyPatch()
    try:
        for name in names:
            patch.setattr(L.LightningModule, name, note(name))
        trainer(tmp_path, max_epochs=1).fit(Net(), loader())
    finally:
        patch.undo()
    assert called == []


# Bad input: a clear message, and the way out.


def test_s01_missing_parts_of_a_module(tmp_path: Path) -> None:
    class NoOptimizer(L.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any: ...

    with pytest.raises(ConfigurationError, match=r"NoOptimizer has no configure_optimizers: define it, and return"):
        trainer(tmp_path).fit(NoOptimizer(), loader())
    with pytest.warns(UserWarning, match="there is a val_dataloader, but Net has no validation_step: no validation"):
        trainer(tmp_path, max_epochs=1).fit(Net(), loader(), loader())
    with pytest.raises(ConfigurationError, match="Net has no validation_step: define"):
        trainer(tmp_path).validate(Net(), loader())
    with pytest.raises(ConfigurationError, match="there is no test_dataloader: give loaders"):
        trainer(tmp_path).test(Net())


@pytest.mark.parametrize("returned", ["a string", 3, [1], {"los": 1}])
def test_s75_what_is_no_loss(tmp_path: Path, returned: Any) -> None:
    class Bad(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return returned

    with pytest.raises(ConfigurationError, match=r"Bad\.training_step returned .* or None to leave the batch out"):
        trainer(tmp_path).fit(Bad(), loader())


def test_s75_what_manual_optimisation_may_not_return(tmp_path: Path) -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return "done"

    with pytest.raises(ConfigurationError, match="with manual optimisation it returns nothing, a tensor or a dict"):
        trainer(tmp_path).fit(Manual(), loader())


def test_s09_schedulers_of_other_optimizers_are_refused(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        one, two = (torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2))
        return [one], [torch.optim.lr_scheduler.StepLR(two, 1)]

    with pytest.raises(ConfigurationError, match="StepLR is of an optimizer that was not returned"):
        trainer(tmp_path).fit(Net(configure), loader())


def test_s09_the_modules_schedulers(tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(module.count)]

    for count, expected in ((0, type(None)), (1, torch.optim.lr_scheduler.StepLR), (2, list)):
        net = Net(configure)
        net.count = count  # type: ignore[assignment]
        trainer(tmp_path, max_epochs=1).fit(net, loader())
        assert isinstance(net.lr_schedulers(), expected)


def test_s76_validated_in_a_fit_like_alone(tmp_path: Path) -> None:
    net = Validated()
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(net, loader(), loader())
    inside = float(runner.callback_metrics["val_loss"])
    made = DataLoader(TensorDataset(*data().tensors), batch_size=4)
    (alone,) = runner.validate(net, made, verbose=False)
    assert alone["val_loss"] == inside
