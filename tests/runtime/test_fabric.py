"""Fabric: a loop of one's own on the same seams."""

import copy
import inspect
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import everstep as L
from everstep.accelerators import Accelerator
from everstep.errors import ConfigurationError
from everstep.fabric import FabricModule
from everstep.precision import ScaledPrecision, TruePrecision
from everstep.strategies import FSDPStrategy
from tests.runtime.peer import lightning, quiet
from tests.runtime.strategies.models import Blocks, loader


def plain(epochs: int = 2) -> dict[str, Any]:
    """The loop by hand."""
    L.seed_everything(5)
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in loader(6, 24):
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return model.state_dict()


def loop(fabric: L.Fabric, epochs: int = 2, path: Path | None = None, accumulate: bool = False) -> dict[str, Any]:
    """The same through Fabric; returns whole weights."""
    L.seed_everything(5)
    module = Blocks()
    model = fabric.setup_module(module)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.01))
    batches = fabric.setup_dataloaders(loader(6 // fabric.world_size, 24))
    state = {"model": model, "optimizer": optimizer, "epoch": 0}
    if path is not None and path.exists():
        assert fabric.load(path, state) == {}
    for epoch in range(state["epoch"], epochs):
        for x, y in batches:
            optimizer.zero_grad()
            if accumulate:
                with fabric.no_backward_sync(model):
                    fabric.backward(mse_loss(model(x), y) / 2)
                fabric.backward(mse_loss(model(x), y) / 2)
            else:
                fabric.backward(mse_loss(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
        if path is not None:
            fabric.save(path, {**state, "epoch": epoch + 1})
    whole: dict[str, Any] = fabric.strategy.gather(model.state_dict())
    return whole


def close(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-4, atol=tolerance), name


def test_s11_a_loop_of_ones_own_is_a_plain_loop() -> None:
    found, expected = loop(L.Fabric(accelerator="cpu")), plain()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.ranks
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("strategy", ["ddp_fork", "fsdp"])
def test_s11_on_several_ranks(strategy: str, accumulate: bool) -> None:
    chosen: Any = FSDPStrategy(start_method="fork") if strategy == "fsdp" else strategy
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy=chosen)
    close(fabric.launch(loop, 2, None, accumulate), plain())


@pytest.mark.ranks
def test_s11_saved_on_two_ranks_goes_on_on_one(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    L.Fabric(accelerator="cpu", devices=2, strategy=FSDPStrategy(start_method="fork")).launch(loop, 1, path)
    torch.load(path, weights_only=True)
    close(loop(L.Fabric(accelerator="cpu"), 2, path), plain())


def quiet_and_loud(fabric: L.Fabric) -> list[list[bool]]:
    """Of two modules, which of their gradients are everybody's."""
    L.seed_everything(5)
    quiet, loud = fabric.setup_module(nn.Linear(3, 1)), fabric.setup_module(nn.Linear(3, 1))
    x = torch.full((2, 3), float(fabric.global_rank + 1))
    same = []
    for module in (quiet, None):  # and afterwards the quiet one speaks again
        quiet.zero_grad()
        loud.zero_grad()
        with fabric.no_backward_sync(quiet, enabled=module is quiet):
            fabric.backward((quiet(x) + loud(x)).sum())
        gradients = [fabric.all_gather(part.weight.grad) for part in (quiet, loud)]
        same.append([torch.equal(of_ranks[0], of_ranks[1]) for of_ranks in gradients])
    return same


@pytest.mark.ranks
def test_s11_only_the_given_module_is_not_synchronised() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    assert fabric.launch(quiet_and_loud) == [[False, True], [True, True]]


def talk(fabric: L.Fabric) -> list[Any]:
    rank = fabric.global_rank
    with fabric.rank_zero_first():
        begun = time.monotonic()
    return [
        fabric.all_reduce(torch.tensor(float(rank + 1))).item(),
        fabric.all_reduce({"a": torch.tensor(rank + 1)}, reduce_op="sum")["a"].item(),
        [fabric.all_reduce(torch.tensor(sign * (rank + 2))).item() for sign in (1, -1)],
        [fabric.strategy.reduce(torch.tensor(sign * (rank + 2))).item() for sign in (1, -1)],
        fabric.all_gather(torch.tensor([rank])).tolist(),
        fabric.broadcast({"from": rank}, src=1),
        fabric.world_size,
        sorted(begins := fabric.all_gather(torch.tensor(begun, dtype=torch.float64)).tolist())[0] == begins[0],
    ]


@pytest.mark.ranks
def test_s11_ranks_talk() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=3, strategy="ddp_fork")
    assert fabric.launch(talk) == [2.0, 6, [3, -3], [3, -3], [[0], [1], [2]], {"from": 1}, 3, True]


def said(fabric: L.Fabric) -> list[Any]:
    """By the words that Lightning's strategies have."""
    strategy, rank = fabric.strategy, fabric.global_rank
    strategy.barrier("here")
    value = strategy.broadcast({"of": rank, "some": [torch.full((2,), float(rank)), None, float("inf")]}, src=1)
    return [
        strategy.reduce(torch.tensor(float(rank))).item(),
        [strategy.reduce(torch.tensor(float(rank)), reduce_op=how).item() for how in ("mean", "sum", "min", "max")],
        [strategy.reduce_boolean_decision(rank == 0), strategy.reduce_boolean_decision(rank == 0, all=False)],
        [value["of"], value["some"][0].tolist(), value["some"][1:]],
        [strategy.is_global_zero, strategy.global_rank, strategy.local_rank],
    ]


@pytest.mark.ranks
def test_s60_strategies_speak_lightnings_language() -> None:
    alone = said(L.Fabric(accelerator="cpu"))
    assert alone[:3] == [0.0, [0.0] * 4, [True, True]]
    assert L.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(said) == [
        0.5, [0.5, 1.0, 0.0, 1.0], [False, True], [1, [1.0, 1.0], [None, float("inf")]], [True, 0, 0],
    ]  # fmt: skip


def test_s11_precision_and_autocast() -> None:
    fabric = L.Fabric(accelerator="cpu", precision="bf16-mixed")
    model, optimizer = fabric.setup(linear := nn.Linear(3, 2), torch.optim.SGD(linear.parameters(), lr=0.1))
    assert model(torch.ones(1, 3)).dtype is torch.bfloat16
    assert (torch.ones(3, 3) @ torch.ones(3, 3)).dtype is torch.float32
    with fabric.autocast():
        assert (torch.ones(3, 3) @ torch.ones(3, 3)).dtype is torch.bfloat16
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert isinstance(model, FabricModule)
    with L.Fabric(accelerator="cpu", precision="64-true").init_module():
        assert nn.Linear(1, 1).weight.dtype is torch.float64


def test_s11_its_optimizer_is_an_optimizer() -> None:
    """A scheduler takes it, before and after setup, and what clips says the norm."""
    fabric = L.Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(linear := nn.Linear(3, 1), torch.optim.SGD(linear.parameters(), lr=1.0))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(copy.deepcopy(optimizer), torch.optim.SGD)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    fabric.backward(model(torch.ones(1, 3)).sum())
    assert fabric.clip_gradients(model, optimizer, max_norm=0.5) == pytest.approx(2.0)
    assert fabric.clip_gradients(model, optimizer, max_norm=0.5, norm_type=float("inf")) == pytest.approx(0.25)
    before = linear.weight.clone()
    optimizer.step()
    scheduler.step()
    assert torch.allclose(before - linear.weight, torch.full((1, 3), 0.25))
    assert optimizer.param_groups[0]["lr"] == 0.5
    linear.weight.grad = torch.full((1, 3), float("nan"))
    with pytest.raises(RuntimeError, match="non-finite"):
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
    assert fabric.clip_gradients(model, optimizer, max_norm=0.5, error_if_nonfinite=False).isnan()


def test_s11_what_scripts_ask_of_it(tmp_path: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", plugins=TruePrecision("64-true"), loggers=["first", "second"])
    assert fabric.logger == "first"
    with fabric.init_tensor():
        assert torch.zeros(1).dtype is torch.float64
    with fabric.init_module(empty_init=True):
        linear = nn.Linear(3, 1)
    assert linear.weight.is_meta
    model = fabric.setup(linear)
    assert model.weight.device.type == "cpu"
    assert model.weight.dtype is torch.float64
    fabric.save(tmp_path / "a.ckpt", {"model": model}, filter={"model": lambda name, value: "bias" not in name})
    assert list(fabric.load(tmp_path / "a.ckpt")["model"]) == ["weight"]
    with pytest.raises(ConfigurationError, match="filter has 'x'"):
        fabric.save(tmp_path / "a.ckpt", {"model": model}, filter={"x": lambda name, value: True})
    with pytest.raises(ConfigurationError, match="plugins has a int"):
        L.Fabric(accelerator="cpu", plugins=[3])


def test_s11_an_epoch_may_be_set_at_the_sampler() -> None:
    """As scripts for several ranks do: the same epoch has the same order."""
    loader = L.Fabric(accelerator="cpu").setup_dataloaders(DataLoader(list(range(16)), batch_size=4, shuffle=True))
    assert loader.batch_size == 4
    assert loader.sampler.num_samples == 16
    orders = []
    for epoch in (3, 4, 3):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat(list(loader)).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_s11_an_overflow_skips_the_step() -> None:
    fabric = L.Fabric(accelerator="cpu", precision=ScaledPrecision("cpu"))
    model, optimizer = fabric.setup(linear := nn.Linear(3, 1), torch.optim.SGD(linear.parameters(), lr=0.1))
    before = linear.weight.clone()
    fabric.backward(model(torch.ones(1, 3)).sum() * 1e30)
    fabric.clip_gradients(model, optimizer, clip_val=0.1)
    optimizer.step()
    assert torch.equal(linear.weight, before)


def test_s11_a_marked_method_goes_through_the_precision() -> None:
    fabric = L.Fabric(accelerator="cpu", precision="bf16-mixed")
    module = Blocks()
    model = fabric.setup(module)
    assert model.forward(torch.ones(1, 3)).dtype is torch.bfloat16
    assert model.predict_step((torch.ones(1, 3),), 0).dtype is torch.float32, "the module's own"
    model.mark_forward_method("predict_step")
    assert model.predict_step((torch.ones(1, 3),), 0).dtype is torch.bfloat16


class Losses(L.LightningModule):
    """A loss that calls the module, and steps that are a LightningModule's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def loss(self, x: Any) -> Any:
        return self(x).square().mean()

    def past_forward(self, x: Any) -> Any:
        return self.layer(x).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def width(self) -> int:
        return self.layer.in_features


def steps_of_methods(fabric: L.Fabric) -> tuple[list[str], list[bool]]:
    L.seed_everything(5)
    model = fabric.setup(Losses())
    x = torch.full((2, 3), float(fabric.global_rank + 1))
    refused = []
    for name in ("loss", "past_forward"):
        for _ in range(2):  # and nothing is left behind
            with pytest.raises(ConfigurationError) as caught:
                getattr(model, name)(x)
        refused.append(str(caught.value))
    assert model.width() == 3
    model(x)
    model.mark_forward_method("loss")
    model.mark_forward_method(model.module.past_forward)
    same = []
    for loss in (model.loss, model.past_forward, lambda x: model.training_step(x, 0)):
        model.zero_grad()
        fabric.backward(loss(x))
        mine = fabric.all_gather(model.layer.weight.grad)
        same.append(bool(torch.equal(mine[0], mine[1])))
    return refused, same


@pytest.mark.ranks
def test_s11_a_method_that_is_not_forward_trains_one_model_or_is_refused() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    refused, same = fabric.launch(steps_of_methods)
    assert "Losses.loss() calls the module past the strategy" in refused[0]
    assert 'mark_forward_method("past_forward")' in refused[1]
    assert same == [True, True, True]


def test_s11_a_file_that_lacks_a_key_replaces_nothing(tmp_path: Path) -> None:
    fabric, model = L.Fabric(accelerator="cpu"), nn.Linear(3, 1)
    fabric.save(tmp_path / "a.ckpt", {"model": nn.Linear(3, 1)})
    before = model.weight.clone()
    with pytest.raises(ConfigurationError, match=r"has no 'nope'; it has \['model'\]"):
        fabric.load(tmp_path / "a.ckpt", {"model": model, "nope": 1})
    assert torch.equal(model.weight, before)


def test_s11_what_cannot_work_is_said(tmp_path: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    with pytest.raises(ConfigurationError, match=r"give launch\(\) the function"):
        fabric.launch()
    alone = L.Fabric(accelerator="cpu")
    with pytest.raises(ConfigurationError, match="one of clip_val and max_norm"):
        alone.clip_gradients(None, None)
    alone.save(tmp_path / "a.ckpt", {"x": 1})
    with pytest.raises(ConfigurationError, match=r"has no 'y'; it has \['x'\]"):
        alone.load(tmp_path / "a.ckpt", {"y": 2})
    assert alone.load(tmp_path / "a.ckpt", {"y": 2}, strict=False) == {"x": 1}
    with pytest.raises(ConfigurationError, match="there is no checkpoint file"):
        alone.load(tmp_path / "b.ckpt")


class Elsewhere(Accelerator):
    """Another device than the CPU, without any hardware: what is moved there has no values left."""

    def device(self, index: int) -> torch.device:
        return torch.device("meta")


def test_s11_a_script_may_move_its_module_itself() -> None:
    optimizer = torch.optim.SGD((linear := nn.Linear(3, 1)).parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fabric = L.Fabric(accelerator=Elsewhere())
    model, _, same = fabric.setup(linear, optimizer, scheduler=scheduler, move_to_device=False)
    assert same is scheduler
    assert model.weight.device.type == "cpu"
    assert fabric.setup_module(linear, move_to_device=False).weight.device.type == "cpu"
    assert fabric.setup_module(linear).weight.device.type == "meta"
    assert isinstance(fabric.accelerator, Elsewhere)


def test_s11_a_compiled_module_is_set_up_as_the_module_inside() -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph.forward

    model = L.Fabric(accelerator="cpu").setup(torch.compile(nn.Linear(3, 1), backend=backend))
    assert list(model.state_dict()) == ["weight", "bias"]
    model(torch.ones(2, 3))
    assert calls, "and its forward is compiled"


def test_s11_a_lightning_module_works_through_fabric() -> None:
    """Its own log, manual_backward and optimizers are the Fabric's, as Lightning's are."""

    def result(library: Any, fabric_of: Any) -> Any:
        logged: dict[str, Any] = {}

        class Log:
            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
                logged.update({name: float(value) for name, value in metrics.items()})

        class Module(library.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 1)

            def forward(self, x: Any) -> Any:
                return self.layer(x)

            def on_something(self, value: int) -> None:
                self.log("heard", float(value))

        module = Module()
        nn.init.ones_(module.layer.weight)
        assert module.fabric is None
        fabric = fabric_of(accelerator="cpu", devices=1, loggers=Log())
        fabric.launch()
        model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
        assert module.fabric is fabric
        assert module.optimizers() is optimizer
        module.log("a", 1.0)
        module.log("unseen", 1.0, logger=False)
        module.log_dict({"b": 2.0})
        fabric.call("on_something", 3)
        assert model.logger is module.loggers[0]
        module.manual_backward(model(torch.ones(1, 3)).sum())
        module.optimizers().step()
        assert module.all_gather(torch.ones(2)).tolist() == [1.0, 1.0]
        return logged, module.global_rank, module.layer.weight.tolist()

    with quiet():
        theirs = result(lightning, __import__("lightning").fabric.Fabric)
        assert result(L, L.Fabric) == theirs
    assert theirs[0] == {"a": 1.0, "b": 2.0, "heard": 3.0}


def test_s11_arguments_come_in_lightnings_order() -> None:
    fabric = __import__("lightning").fabric.Fabric
    names = (
        "all_gather", "all_reduce", "backward", "barrier", "broadcast", "call", "clip_gradients", "load", "load_raw",
        "log", "log_dict", "save", "seed_everything", "setup", "setup_module", "to_device",
    )  # fmt: skip
    for name in names:
        theirs, ours = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (fabric, L.Fabric))
        assert [argument for argument in theirs if not argument.startswith("_")] == ours, name


def test_s11_callbacks_and_loggers() -> None:
    heard: list[Any] = []

    class Listener:
        def on_something(self, value: int) -> None:
            heard.append(value)

        def log_metrics(self, metrics: dict[str, float], step: int | None) -> None:
            heard.append((metrics, step))

    fabric = L.Fabric(accelerator="cpu", callbacks=[Listener()], loggers=Listener())
    fabric.call("on_something", 3)
    fabric.call("on_nothing")
    fabric.log("loss", torch.tensor(0.5), step=7)
    assert heard == [3, ({"loss": 0.5}, 7)]
