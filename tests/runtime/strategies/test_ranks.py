"""Two and three ranks come to what one process comes to. They are forked by the strategy itself, and talk over gloo."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # FSDP imports it in each rank; a fork has it already
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.errors import ConfigurationError
from everstep.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from tests.runtime.build import trainer
from tests.runtime.strategies.models import Block, Blocks, Divided, Fails, Noise, OnMeta, loader

pytestmark = pytest.mark.ranks

GLOBAL_BATCH = 6  # of 22 samples: the last round of an epoch is uneven, over 2 ranks and over 3


def trained(
    tmp_path: Path, data_ranks: int = 1, strategy: Strategy | str = "auto", devices: int = 1,
    model: type[Blocks] = Blocks, samples: int = 22, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What fit, test and predict came to."""
    L.seed_everything(5)
    module, size = model(), GLOBAL_BATCH // data_ranks
    more = {"gradient_clip_val": 0.5, **more}
    runner = trainer(tmp_path, strategy=strategy, devices=devices, accelerator="cpu", **more)
    runner.fit(module, loader(size, shuffle=True), loader(size))
    metrics = {name: float(value) for name, value in runner.callback_metrics.items() if "_step" not in name}
    (result,) = runner.test(module, loader(size), verbose=False)
    predictions = torch.cat(runner.predict(module, loader(size)))
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "metrics": metrics,
        "result": result,
        "predictions": predictions,
        "steps": runner.global_step,
        "next": float(torch.rand(())),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("alone"))


#: The documented tolerance: sums over ranks are taken in another order than over samples.
def close(found: dict[str, Any], expected: dict[str, Any], relative: float = 1e-4, absolute: float = 1e-5) -> None:
    assert found["steps"] == expected["steps"]
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        assert torch.allclose(found["weights"][name], value, rtol=relative, atol=absolute), name
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=relative, abs=absolute)
    assert found["result"] == pytest.approx(expected["result"], rel=relative, abs=absolute)
    assert torch.allclose(found["predictions"], expected["predictions"], rtol=relative, atol=absolute)


@pytest.mark.parametrize("ranks", [2, 3])
def test_s60_s08_ddp_is_one_process(tmp_path: Path, alone: dict[str, Any], ranks: int) -> None:
    found = trained(tmp_path, ranks, "ddp_notebook", ranks)
    close(found, alone)  # of the same module, only the Trainer's arguments differ
    assert found["next"] == alone["next"], "random states come back to the caller as well"


class ThreeMegabytes(Blocks):
    """Logs in how many buckets the gradients of a step are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Sequential(torch.nn.Linear(600, 600), torch.nn.Linear(600, 600))
        self.buckets = 0

    def on_train_start(self) -> None:
        def counted(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self.buckets += 1
            return allreduce_hook(state, bucket)  # type: ignore[arg-type]

        (ddp,) = self.trainer.strategy._wrapped
        ddp.register_comm_hook(None, counted)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.buckets = 0
        return super().training_step(batch, batch_idx) + 0.0 * self.wide(torch.ones(600)).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("buckets", float(self.buckets))


def test_s60_ddp_averages_while_the_backward_runs(tmp_path: Path) -> None:
    """The first bucket is a small one, as in torch, unless it is told otherwise: 25 MB would be the whole model."""

    def buckets(strategy: DDPStrategy) -> float:
        runner = trainer(tmp_path, strategy=strategy, devices=2, accelerator="cpu", max_steps=2)
        runner.fit(ThreeMegabytes(), loader(3), loader(3))
        return float(runner.callback_metrics["buckets"])

    assert buckets(DDPStrategy(start_method="fork")) > 1
    assert buckets(DDPStrategy(25.0, start_method="fork")) == 1


class Few(Blocks):
    """Logs from the last layer on; what each rank sees of it afterwards is in `seen`."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mean", batch[0].mean(), sync_dist=True)
        self.log("most", batch[0].max(), sync_dist=True, reduce_fx="max")

    def on_test_end(self) -> None:
        metrics = self.trainer.callback_metrics
        seen = self.all_gather(torch.stack([metrics["mean"], metrics["most"]]))
        self.print("seen", seen.tolist())


def test_s74_a_rank_without_a_batch_learns_what_the_others_have_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A test of one sample: rank 1 gets none of it, and would not know that there is something to reduce."""
    runner = trainer(tmp_path, strategy="ddp_fork", devices=2, accelerator="cpu")
    (result,) = runner.test(Few(), loader(2, 1), verbose=False)
    value, most = result["mean"], result["most"]
    assert f"seen [[{value}, {most}], [{value}, {most}]]" in capfd.readouterr().out


class OnDevice(torch.Tensor):
    """Stands for a tensor on a device: it is counted how often one is made a number of."""

    fetched = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.tolist, torch.Tensor.__bool__):
            OnDevice.fetched += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class Steps(Blocks):
    """Logs step values of its own on each rank, and lowers its rate by one of them."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        mine = torch.tensor(float(batch_idx + 1) * (1 + self.global_rank)).as_subclass(OnDevice)
        options: Any = {"on_step": True, "on_epoch": True, "sync_dist": True}
        self.log("mean", mine, **options)
        self.log("mean_of_4", mine, batch_size=1 + 2 * self.global_rank, **options)
        for how in ("sum", "min", "max"):
            self.log(how, mine, reduce_fx=how, **options)
        self.log("mine", float(mine.as_subclass(torch.Tensor)), on_step=True)
        self.log("worse", float(3 * batch_idx if self.global_rank else -batch_idx), sync_dist=True)
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert OnDevice.fetched == 0
        seen, step = self.trainer.callback_metrics, batch_idx + 1
        plain = {name: float(value.as_subclass(torch.Tensor)) / step for name, value in seen.items()}
        assert plain["mine"] == 1 + self.global_rank
        assert plain["mean"] == plain["mean_step"] == 1.5
        assert plain["mean_of_4"] == 1.75
        assert (plain["sum"], plain["min"], plain["max"]) == (3, 1, 2)

    def on_fit_end(self) -> None:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.print("rates", self.all_gather(torch.tensor(rate)).tolist())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0625)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "interval": "step", "monitor": "worse"}}


def test_s70_s78_step_values_are_those_of_all_ranks_when_they_are_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a logger and a log step: a scheduler that looks at one lowers the same rate on each rank. Nothing is
    fetched for it."""
    runner = trainer(tmp_path, strategy="ddp_fork", devices=2, accelerator="cpu", max_epochs=1, limit_val_batches=0)
    runner.fit(Steps(), loader(2, 16))
    assert "rates [0.0078125, 0.0078125]" in capfd.readouterr().out  # 4 steps, the first is the best


def test_s74_c07_every_sample_counts_once(tmp_path: Path, alone: dict[str, Any]) -> None:
    """22 samples in rounds of 6 over 3 ranks: the last round has 4, one rank gets two of them and two get one."""
    found = trained(tmp_path, 3, "ddp_fork", 3)
    assert found["result"]["count"] == 22
    assert len(found["predictions"]) == 22
    assert found["metrics"]["loss_epoch"] == pytest.approx(alone["metrics"]["loss_epoch"], rel=1e-5)


def test_c07_fewer_samples_than_ranks(tmp_path: Path) -> None:
    """The last round has one sample for three ranks: no rank waits for the others for ever."""

    def weights(strategy: str, ranks: int) -> torch.Tensor:
        L.seed_everything(5)
        module = Blocks()
        runner = trainer(tmp_path, strategy=strategy, devices=ranks, accelerator="cpu")
        runner.fit(module, loader(GLOBAL_BATCH // ranks, 13), loader(1, 1))
        return module.last.weight.detach()

    assert torch.allclose(weights("ddp_fork", 3), weights("auto", 1), rtol=1e-4, atol=1e-6)


def test_c07_streams_end_together_and_go_on_where_they_were(tmp_path: Path) -> None:
    """Rank 0 has 9 batches and rank 1 has 7: an epoch has 7. Each draws its own noise, some batches ahead."""

    def fit(ckpt_path: Path | None = None, **more: Any) -> tuple[dict[str, Any], int]:
        L.seed_everything(5)
        module = Blocks()
        runner = trainer(tmp_path, strategy="ddp_fork", devices=2, accelerator="cpu", limit_val_batches=0, **more)
        runner.fit(module, torch.utils.data.DataLoader(Noise(), batch_size=2), ckpt_path=ckpt_path)
        return module.state_dict(), runner.global_step

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    expected, steps = fit(callbacks=[keep])
    assert steps == 14
    for step in (3, 6, 9, 13):
        found, steps = fit(tmp_path / f"step={step}.ckpt")
        assert steps == 14
        for name, value in expected.items():
            assert torch.equal(found[name], value), (step, name)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cpu_offload": True},
        {"sharding_strategy": "SHARD_GRAD_OP", "activation_checkpointing_policy": {Block}},
        {"auto_wrap_policy": {Block}, "activation_checkpointing_policy": lambda layer: isinstance(layer, Block)},
    ],
    ids=["full", "cpu_offload", "grad_op_checkpointing", "policies"],
)
def test_s60_c04_fsdp_is_one_process(
    tmp_path: Path, alone: dict[str, Any], ranks: int, options: dict[str, Any]
) -> None:
    """Clipped by norm, on shards (C4)."""
    close(trained(tmp_path, ranks, FSDPStrategy(start_method="fork", **options), ranks), alone)


def test_s60_hybrid_sharding(tmp_path: Path, alone: dict[str, Any]) -> None:
    hybrid = FSDPStrategy("HYBRID_SHARD", device_mesh=(1, 3), start_method="fork")
    close(trained(tmp_path, 3, hybrid, 3), alone)
    replicas = FSDPStrategy("HYBRID_SHARD", device_mesh=(3, 1), start_method="fork")
    close(trained(tmp_path, 3, replicas, 3), alone)
    with pytest.raises(ConfigurationError, match=r"device_mesh=\(2, 2\) needs 4 ranks, there are 3"):
        trained(tmp_path, 3, FSDPStrategy("HYBRID_SHARD", device_mesh=(2, 2), start_method="fork"), 3)
    with pytest.raises(ConfigurationError, match='shard nothing, strategy="ddp"'):
        FSDPStrategy("NO_SHARD")  # type: ignore[arg-type]


def test_s60_fsdp_from_the_meta_device(tmp_path: Path, alone: dict[str, Any]) -> None:
    """Layers get the weights that one process draws, though no rank ever has all of them."""
    sharded = trained(tmp_path, 2, FSDPStrategy(start_method="fork"), 2, OnMeta)
    close(sharded, trained(tmp_path, model=OnMeta))


def test_s61_fsdp_in_mixed_precision(tmp_path: Path, alone: dict[str, Any]) -> None:
    found = trained(tmp_path, 2, FSDPStrategy(start_method="fork"), 2, precision="bf16-mixed")
    assert found["predictions"].dtype is torch.bfloat16
    found["predictions"] = found["predictions"].float()
    close(found, alone, 0.1, 0.05)


def test_s34_fsdp_accumulates(tmp_path: Path) -> None:
    one = trained(tmp_path, accumulate_grad_batches=2)
    close(trained(tmp_path, 2, FSDPStrategy(start_method="fork"), 2, accumulate_grad_batches=2), one)


class ByHand(Blocks):
    """Its optimizer steps in training_step, after gradients are clipped there."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()


class Several(Blocks):
    """Its parts have optimizers of their own."""

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.first, self.blocks, self.last)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_c14_several_optimizers_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    chosen: Any = FSDPStrategy(start_method="fork") if strategy == "fsdp" else "ddp_fork"
    more: dict[str, Any] = {"model": Several, "samples": 24}
    close(trained(tmp_path, 2, chosen, 2, **more), trained(tmp_path, **more))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_s07_manual_optimisation_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    """Clipped by norm, on shards."""
    chosen: Any = FSDPStrategy(start_method="fork") if strategy == "fsdp" else "ddp_fork"
    more: dict[str, Any] = {"model": ByHand, "gradient_clip_val": None, "samples": 24}
    close(trained(tmp_path, 2, chosen, 2, **more), trained(tmp_path, **more))


class Apart(ByHand):
    """Each rank uses another part, and none uses the blocks."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        part = (self.first, self.last)[self.global_rank]
        self.manual_backward(sum(parameter.square().sum() for parameter in part.parameters()))
        assert all(p.grad is not None for part in (self.first, self.last) for p in part.parameters())
        assert all(p.grad is None for p in self.blocks.parameters())
        optimizer.step()

    def on_train_end(self) -> None:
        one, other = self.all_gather(torch.stack([parameter.detach().sum() for parameter in self.parameters()]))
        assert torch.equal(one, other)


def test_s07_ranks_that_use_other_parts_train_one_model(tmp_path: Path) -> None:
    trained(tmp_path, 2, "ddp_fork", 2, model=Apart, gradient_clip_val=None)


@pytest.mark.parametrize(("data_ranks", "tensor_ranks"), [(1, 2), (2, 2)])
def test_s60_tensor_parallel_on_a_mesh(
    tmp_path: Path, alone: dict[str, Any], data_ranks: int, tensor_ranks: int
) -> None:
    """Ranks of one tensor-parallel group train on the same samples; the rest is sharded over the other axis."""
    strategy = ModelParallelStrategy(data_ranks, tensor_ranks, start_method="fork")
    found = trained(tmp_path, data_ranks, strategy, data_ranks * tensor_ranks, Divided)
    found["predictions"] = alone["predictions"]  # both ranks of a group make the same ones
    close(found, alone)


def test_s60_sizes_of_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="data_parallel_size=2 x tensor_parallel_size=3 is not the number"):
        trained(tmp_path, 1, ModelParallelStrategy(2, 3, start_method="fork"), 2)


def test_s28_ddp_spawn_needs_what_can_be_carried(tmp_path: Path) -> None:
    class Local(Blocks):
        pass

    with pytest.raises(ConfigurationError, match=r"cannot be carried to new processes.*ddp_fork.*everstep launch"):
        trainer(tmp_path, strategy="ddp_spawn", devices=2, accelerator="cpu").fit(Local(), loader(3), loader(3))


def test_s28_ddp_spawn(tmp_path: Path) -> None:
    """New interpreters, which get everything by value: no rank trains another one's parameters."""
    L.seed_everything(5)
    one, two = Blocks(), Blocks()
    two.load_state_dict(one.state_dict())
    trainer(tmp_path, max_epochs=1).fit(one, loader(6), loader(6))
    runner = trainer(tmp_path, max_epochs=1, strategy="ddp_spawn", devices=2, accelerator="cpu")
    runner.fit(two, loader(3), loader(3))
    assert torch.allclose(one.last.weight, two.last.weight, rtol=1e-4, atol=1e-6)
    assert runner.global_step == 4


def test_c08_one_ranks_exception_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="rank one has had enough") as raised:
        trainer(tmp_path, strategy="ddp_fork", devices=3, accelerator="cpu").fit(Fails(), loader(2), loader(2))
    assert "rank 1:" in str(raised.value.__cause__)
    assert "models.py" in str(raised.value.__cause__), "the traceback of the rank, to the line"
    assert time.monotonic() - begun < 60  # not gloo's half an hour


class Callbacks(L.Callback):
    def __init__(self) -> None:
        self.ends = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ends += 1

    def state_dict(self) -> dict[str, Any]:
        return {"ends": self.ends}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ends = state_dict["ends"]


def test_s28_callbacks_come_back(tmp_path: Path) -> None:
    counts = Callbacks()
    runner = trainer(tmp_path, strategy="ddp_fork", devices=2, accelerator="cpu", callbacks=[counts])
    runner.fit(Blocks(), loader(3), loader(3))
    assert counts.ends == 2


def test_s60_find_unused_parameters(tmp_path: Path) -> None:
    class HalfUsed(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.blocks[self.trainer.global_step % 2](self.first(x)))
            return result

    runner = trainer(tmp_path, strategy="ddp_fork_find_unused_parameters_true", devices=2, accelerator="cpu")
    runner.fit(HalfUsed(), loader(3), loader(3))
    assert runner.global_step == 8
    assert isinstance(runner.strategy, DDPStrategy)
