"""DeepSpeed's ZeRO on two gloo ranks is one process; its state goes on under any other strategy.

The package is an extra that is built against the torch that is there: without it these tests are skipped.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

import everstep as L
from everstep.errors import ConfigurationError
from everstep.strategies import DeepSpeedStrategy, choose_strategy
from tests.runtime.build import trainer
from tests.runtime.strategies.models import Blocks, loader
from tests.runtime.strategies.test_ranks import close, trained

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("ignore")]  # its own


@pytest.fixture
def installed() -> None:
    pytest.importorskip("deepspeed")


class Plain(Blocks):
    """Trained by an optimizer that shows of what size gradients are."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_s60_deepspeed_is_one_process(tmp_path: Path, stage: Any, clip: float | None) -> None:
    """In windows of two batches, evaluated."""
    more: dict[str, Any] = {"model": Plain, "accumulate_grad_batches": 2, "gradient_clip_val": clip}
    close(trained(tmp_path, 2, DeepSpeedStrategy(stage, start_method="fork"), 2, **more), trained(tmp_path, **more))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_s60_deepspeed_resumes(tmp_path: Path, stage: Any, precision: str) -> None:
    """From a file of its own, also on three ranks, as if nothing had been; and without DeepSpeed."""

    def fit(epochs: int, ranks: int, ckpt_path: Any = None, save: Path | None = None) -> dict[str, Any]:
        L.seed_everything(5)
        module = Blocks()
        runner = trainer(
            tmp_path, max_epochs=epochs, devices=ranks, accelerator="cpu", precision=precision,
            strategy=DeepSpeedStrategy(stage, start_method="fork"), callbacks=[Saves(save)] if save else None,
        )  # fmt: skip
        runner.fit(module, loader(12 // ranks, 24), loader(12 // ranks, 24), ckpt_path=ckpt_path)
        return module.state_dict()

    whole, file = fit(2, 2), tmp_path / "half.ckpt"
    fit(1, 2, save=file)
    assert torch.load(file, weights_only=True)["optimizer_states"][0]["state"][0]["exp_avg"].shape == (8, 3)
    assert furthest(fit(2, 2, file), whole) == 0.0
    assert furthest(fit(2, 3, file), whole) < (1e-4 if precision == "32-true" else 0.02)
    if precision == "32-true":
        module = Blocks()
        trainer(tmp_path, max_epochs=2).fit(module, loader(12, 24), loader(12, 24), ckpt_path=file)
        assert furthest(module.state_dict(), whole) < 1e-4


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(float((value - b[name]).abs().max()) for name, value in a.items())


class Saves(L.Callback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.file)


def by_hand(fabric: L.Fabric, epochs: int, path: Path) -> dict[str, Any]:
    L.seed_everything(5)
    module = Plain()
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    batches = fabric.setup_dataloaders(loader(6 // fabric.world_size, 24))
    state = {"model": model, "optimizer": optimizer, "epoch": 0}
    if path.exists():
        assert fabric.load(path, state) == {}
    for epoch in range(state["epoch"], epochs):
        for x, y in batches:
            optimizer.zero_grad()
            fabric.backward(mse_loss(model(x), y))
            optimizer.step()
        fabric.save(path, {**state, "epoch": epoch + 1})
    return fabric.strategy.model_state(module)


@pytest.mark.usefixtures("installed")
def test_s60_s11_deepspeed_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    def fabric() -> L.Fabric:
        return L.Fabric(accelerator="cpu", devices=2, strategy=DeepSpeedStrategy(3, start_method="fork"))

    alone = by_hand(L.Fabric(accelerator="cpu"), 2, tmp_path / "alone.ckpt")
    fabric().launch(by_hand, 1, tmp_path / "state.ckpt")
    assert furthest(fabric().launch(by_hand, 2, tmp_path / "state.ckpt"), alone) < 1e-5
    with pytest.raises(ConfigurationError, match=r"ties optimizers to their module: give both to fabric.setup"):
        fabric().setup_optimizers(torch.optim.SGD([torch.zeros(1)], lr=0.1))


def test_s60_deepspeed_by_name_and_what_it_refuses(tmp_path: Path) -> None:
    offloaded = choose_strategy("deepspeed_stage_3_offload")
    assert isinstance(offloaded, DeepSpeedStrategy)
    assert offloaded.config["zero_optimization"] == {
        "stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"},
    }  # fmt: skip
    assert choose_strategy("deepspeed").config["zero_optimization"]["stage"] == 2  # type: ignore[attr-defined]
    own = DeepSpeedStrategy(config={"zero_optimization": {"overlap_comm": False}, "steps_per_print": 5})
    assert own.config["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert own.config["steps_per_print"] == 5
    with pytest.raises(ConfigurationError, match="give 1, 2 or 3"):
        DeepSpeedStrategy(4)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="offload_parameters=True needs stage=3"):
        DeepSpeedStrategy(2, offload_parameters=True)


def test_s60_deepspeed_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigurationError, match=r'pip install --no-build-isolation "everstep\[deepspeed\]"'):
        trainer(tmp_path, strategy="deepspeed", accelerator="cpu").fit(Blocks(), loader(3), loader(3))


class Two(Blocks):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.first, self.last)]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Two, {}, 'trains with one optimizer.*take strategy="ddp" or "fsdp"'),
        (Blocks, {"precision": "64-true"}, 'precision="64-true" does not go with strategy="deepspeed"'),
        (Blocks, {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, 'give "norm"'),
    ],
)
def test_s60_deepspeed_refuses(tmp_path: Path, module: type[Blocks], options: Any, message: str) -> None:
    strategy = DeepSpeedStrategy(start_method="fork")
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, strategy=strategy, devices=2, accelerator="cpu", **options).fit(
            module(), loader(3), loader(3)
        )
