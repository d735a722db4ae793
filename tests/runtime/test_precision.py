"""Number formats: what parameters, inputs and gradients are in, and what the scaler does."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as L
from everstep.errors import ConfigurationError
from everstep.precision import Precision, ScaledPrecision, choose_precision
from tests.runtime.build import Net, loader, trainer


class Seen(Net):
    """Notes the types of everything in its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, torch.dtype] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        out = self.layer(x)
        self.types = {"input": x.dtype, "parameter": self.layer.weight.dtype, "output": out.dtype,
                      "new": torch.zeros(1).dtype}  # fmt: skip
        return (out.float() - y.float()).square().mean()


@pytest.mark.parametrize(
    ("asked", "name"),
    [(None, "32-true"), (32, "32-true"), ("32", "32-true"), (64, "64-true"), ("64", "64-true"), ("bf16", "bf16-mixed"),
     ("bf16-mixed", "bf16-mixed"), ("bf16-true", "bf16-true"), ("16-true", "16-true")],
)  # fmt: skip
def test_s29_spellings(asked: Any, name: str) -> None:
    assert choose_precision(asked).name == name


@pytest.mark.parametrize("asked", [16, "16", "16-mixed"])
def test_s29_float16_on_a_cpu_becomes_bfloat16_and_says_so(asked: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, where there is no GPU
        assert choose_precision(asked, "cuda").name == "16-mixed"
    with pytest.warns(UserWarning, match="on a CPU: bf16-mixed is used instead"):
        assert choose_precision(asked, "cpu").name == "bf16-mixed"


@pytest.mark.usefixtures("algorithms")
def test_s110_float16_and_the_warning_of_the_founding_documents_trainer(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runner = L.Trainer(precision=16, deterministic=True, benchmark=True, default_root_dir=tmp_path)
    assert runner.precision == "bf16-mixed"
    assert "bf16-mixed is used instead" in str(said[0].message)
    assert "benchmark stays off" in str(said[1].message)
    assert {Path(warning.filename) for warning in said} == {Path(__file__)}, "they name the line that says precision=16"


def scaled() -> ScaledPrecision:
    """With a scale at which these small models overflow in no step."""
    return ScaledPrecision("cpu", torch.amp.GradScaler("cpu", init_scale=256.0))


def test_s29_unknown() -> None:
    with pytest.raises(ConfigurationError, match="precision='8-bit' is not known: give one of 32-true, 64-true"):
        choose_precision("8-bit")


@pytest.mark.parametrize(
    ("asked", "parameter", "values", "output"),
    [
        (32, torch.float32, torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("16-true", torch.float16, torch.float16, torch.float16),
        ("bf16-mixed", torch.float32, torch.float32, torch.bfloat16),
        (ScaledPrecision("cpu"), torch.float32, torch.float32, torch.float16),
    ],
)
def test_s29_types_in_a_step(
    tmp_path: Path, asked: Any, parameter: torch.dtype, values: torch.dtype, output: torch.dtype
) -> None:
    net = Seen()
    trainer(tmp_path, precision=asked, max_epochs=1).fit(net, loader())
    new = values if str(asked).endswith("-true") else torch.float32
    assert net.types == {"input": values, "parameter": parameter, "output": output, "new": new}
    assert torch.get_default_dtype() is torch.float32
    assert net.layer.weight.dtype is parameter


def test_s61_mixed_trains_close_to_float32(tmp_path: Path) -> None:
    def weights(precision: Any) -> torch.Tensor:
        torch.manual_seed(1)
        net = Net()
        trainer(tmp_path, precision=precision, gradient_clip_val=0.5).fit(net, loader())
        return net.layer.weight.detach()

    exact = weights(32)
    for half in (weights("bf16-mixed"), weights(scaled())):
        assert torch.allclose(half, exact, atol=0.02)
        assert not torch.equal(half, exact)


class Overflows(Net):
    """The second step's gradients are beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []
        self.scales: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.weights.append(self.layer.weight.detach().clone())
        self.scales.append(self.trainer.precision_plugin.scaler.get_scale())
        return self.loss(batch) * (1e30 if batch_idx == 1 else 1.0)


def test_s29_an_overflow_skips_the_step_and_lowers_the_scale(tmp_path: Path) -> None:
    net = Overflows()
    trainer(tmp_path, precision=scaled(), max_epochs=1).fit(net, loader())
    assert torch.equal(net.weights[1], net.weights[2]), "nothing was learned from it"
    assert not torch.equal(net.weights[2], net.weights[3])
    assert net.scales[2] == net.scales[1] / 2


def test_s32_clipping_sees_unscaled_gradients(tmp_path: Path) -> None:
    norms: list[float] = []

    class Watch(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            norms.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]))
            )

    trainer(tmp_path, precision=scaled(), max_epochs=1, gradient_clip_val=0.25).fit(Watch(), loader())
    assert max(norms) == pytest.approx(0.25, rel=1e-3), "of the true size, not of the scaled one"


def test_s29_the_scaler_is_in_the_checkpoint(tmp_path: Path) -> None:
    from tests.runtime.build import Memory

    memory = Memory(every_steps=2)
    net = Overflows()
    trainer(tmp_path, memory, precision=scaled(), max_epochs=1).fit(net, loader())
    again = scaled()
    trainer(tmp_path, memory.forget_after(1), precision=again, max_epochs=1).fit(Overflows(), loader())
    assert again.scaler.get_scale() == net.scales[-1], "not the initial one"


def test_s06_a_precision_of_ones_own(tmp_path: Path) -> None:
    class Halved(Precision):
        name = "halved"

        def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            super().backward(loss / 2, *args, **kwargs)

    torch.manual_seed(0)
    ours = Net()
    torch.manual_seed(0)
    plain = Net(lambda module: torch.optim.SGD(module.parameters(), lr=0.05))
    runner = trainer(tmp_path, precision=Halved())
    runner.fit(ours, loader())
    trainer(tmp_path).fit(plain, loader())
    assert torch.allclose(ours.layer.weight, plain.layer.weight)
    assert runner.precision == "halved"
