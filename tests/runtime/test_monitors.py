"""Callbacks that measure: gradients, devices, throughput, spikes of the loss."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep.callbacks import DeviceStatsMonitor, GradientNormMonitor, SpikeDetection, ThroughputMonitor
from everstep.callbacks.spike_detection import TrainingSpikeError
from everstep.callbacks.throughput_monitor import known_flops
from everstep.errors import ConfigurationError
from everstep.loggers import TensorBoardLogger
from everstep.utilities.grads import grad_norm
from tests.runtime.build import Memory, Net, loader, trainer
from tests.runtime.test_logs import Sink


def test_s54_norms_of_gradients(tmp_path: Path) -> None:
    seen: list[float] = []

    class Looks(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert self.layer.weight.grad is not None
            assert self.layer.bias.grad is not None
            seen.append(float(torch.cat([self.layer.weight.grad.flatten(), self.layer.bias.grad]).norm()))

    sink = Sink()
    runner = trainer(
        tmp_path, max_epochs=1, logger=sink, log_every_n_steps=2, callbacks=GradientNormMonitor(),
        gradient_clip_val=1e-3,
    )  # fmt: skip
    runner.fit(Looks(), loader())
    logged = [row["grad_2.0_norm_total"] for _, row in sink.rows]
    assert logged == pytest.approx(seen[1::2]), "before clipping, at log steps"
    assert set(sink.rows[0][1]) == {
        "grad_2.0_norm_total", "grad_2.0_norm/layer.weight", "grad_2.0_norm/layer.bias", "epoch",
    }  # fmt: skip


def test_s54_norms_of_one_kind_only_and_distributions(tmp_path: Path, recwarn: Any) -> None:
    logger = TensorBoardLogger(tmp_path)
    monitor = GradientNormMonitor("inf", each_parameter=False, histograms=True)
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=3, callbacks=monitor).fit(Net(), loader())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0})
    events.Reload()
    assert "grad_inf_norm_total" in events.Tags()["scalars"]
    assert set(events.Tags()["histograms"]) == {"gradients/layer.weight", "gradients/layer.bias"}
    assert len(events.Histograms("gradients/layer.bias")) == 2


def test_s54_grad_norm_is_lightnings() -> None:
    from tests.runtime.peer import lightning

    net = Net()
    net.loss(next(iter(loader()))).backward()
    from lightning.pytorch.utilities import grad_norm as theirs

    ours, others = (
        {name: float(value) for name, value in norms.items()} for norms in (grad_norm(net, 2), theirs(net, 2))
    )
    assert ours == pytest.approx(others)
    assert lightning is not None


def test_s55_stats_of_the_device(tmp_path: Path) -> None:
    sink = Sink()
    runner = trainer(tmp_path, max_epochs=1, logger=sink, log_every_n_steps=3, callbacks=DeviceStatsMonitor())
    runner.fit(Net(), loader())
    for hook in ("on_train_batch_start", "on_train_batch_end"):
        rows = [(step, row) for step, row in sink.rows if any(hook in name for name in row)]
        assert [step for step, _ in rows] == [2, 5]
        for name in ("cpu_percent", "cpu_vm_percent", "cpu_swap_percent"):
            assert 0 <= rows[0][1][f"DeviceStatsMonitor.{hook}/{name}"] <= 100
    with pytest.raises(ConfigurationError, match="the Trainer has no logger"):
        trainer(tmp_path, callbacks=DeviceStatsMonitor()).fit(Net(), loader())


def test_s65_throughput_and_mfu(tmp_path: Path) -> None:
    """A clock that goes on by a second at each batch; validations take an hour that does not count."""
    now = [0.0]

    class Slow(Net):
        flops_per_batch = 50.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now[0] += 1.0
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            now[0] += 3600.0

    sink = Sink()
    monitor = ThroughputMonitor(length_fn=lambda batch: 10, available_flops=200.0, clock=lambda: now[0])
    runner = trainer(
        tmp_path, max_epochs=1, logger=sink, log_every_n_steps=2, val_check_interval=3, callbacks=monitor,
        num_sanity_val_steps=0,
    )  # fmt: skip
    runner.fit(Slow(), loader(), loader(4))
    assert [step for step, _ in sink.rows] == [1, 3, 5]
    for number, (_, row) in enumerate(sink.rows, 1):
        values = {name.removeprefix("train/"): value for name, value in row.items() if name != "epoch"}
        assert values == {
            "device/batches_per_sec": 1.0, "device/samples_per_sec": 4.0, "device/items_per_sec": 10.0,
            "device/flops_per_sec": 50.0, "device/mfu": 0.25, "time": 2.0 * number, "batches": 2 * number,
            "samples": 8 * number,
        }  # fmt: skip
    assert monitor.rates(4)["samples_per_sec"] == 16.0


def test_s65_what_a_device_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert known_flops(torch.device("cuda"), "bf16-mixed") == 989e12
    assert known_flops(torch.device("cuda"), "32-true") == 67e12
    assert known_flops(torch.device("cpu"), "32-true") is None


class Spiking(Net):
    at = 4

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch) * 0 + (100.0 if batch_idx == self.at else 1.0)


def test_spike_detection(tmp_path: Path) -> None:
    with pytest.raises(TrainingSpikeError, match=r"jumped to 100\.0 at batch 4 of epoch 0") as raised:
        trainer(tmp_path, callbacks=SpikeDetection()).fit(Spiking(), loader())
    assert raised.value.batch_idx == 4
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [4]
    trainer(tmp_path, callbacks=SpikeDetection(rtol=200.0)).fit(Spiking(), loader())
    trainer(tmp_path, max_epochs=1, callbacks=SpikeDetection(warmup=6)).fit(Spiking(), loader())


def test_spike_detection_remembers_over_a_resume(tmp_path: Path) -> None:
    kept = Memory(every_steps=1)

    class Late(Spiking):
        at = 3

    with pytest.raises(TrainingSpikeError):
        trainer(tmp_path, kept, callbacks=SpikeDetection(warmup=3)).fit(Late(), loader())
    with pytest.raises(TrainingSpikeError):
        trainer(tmp_path, kept.forget_after(2), callbacks=SpikeDetection(warmup=3)).fit(Late(), loader())
