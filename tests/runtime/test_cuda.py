"""What only a CUDA device shows: no synchronisation that nobody asked for, scaled float16, NCCL, memory of a save."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import everstep as L
from everstep.callbacks import DeviceStatsMonitor, ModelCheckpoint
from everstep.precision import ScaledPrecision
from tests.runtime.build import Net, data, loader, trainer
from tests.runtime.processes import run_ranks
from tests.runtime.test_logs import Sink

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Logs(Net):
    """Logs in each step, for bar, step and epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss


class Strict(L.Callback):
    """Between the first step and the epoch's end a synchronisation is an error, but in the steps that are named."""

    def __init__(self, *seen: int) -> None:
        self.seen = seen

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx and batch_idx not in self.seen:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 in self.seen:
            torch.cuda.set_sync_debug_mode("default")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def _sync_is_allowed_afterwards() -> Any:
    yield
    torch.cuda.set_sync_debug_mode("default")


def pinned(samples: int = 48) -> DataLoader[Any]:
    return loader(samples, pin_memory=True)


def test_c10_no_synchronisation_in_a_step_that_nobody_sees(tmp_path: Path) -> None:
    """Twelve steps, of which the sixth and the last are logged. Batches come from pinned memory, without a wait."""
    sink = Sink()
    strict = Strict(5, 11)
    runner = trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=1, logger=sink, log_every_n_steps=6,
                     callbacks=[strict])  # fmt: skip
    runner.fit(Logs(), pinned())
    assert [step for step, row in sink.rows if "loss_step" in row] == [5, 11]


def test_c10_the_check_itself_sees_one(tmp_path: Path) -> None:
    class Looks(Logs):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            float(loss.detach())
            return loss

    with pytest.raises(RuntimeError, match="synchroniz"):
        trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=1, callbacks=[Strict()]).fit(Looks(), pinned())


def test_s61_float16_with_a_scaler(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Half(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(self.layer(batch[0]).dtype)
            return self.loss(batch)

    runner = trainer(tmp_path, accelerator="gpu", devices=1, precision="16-mixed", max_epochs=2)
    model = Half()
    before = model.layer.weight.detach().clone()
    runner.fit(model, loader())
    precision = runner.precision_plugin
    assert isinstance(precision, ScaledPrecision)
    assert set(seen) == {torch.float16}
    assert precision.scaler.get_scale() > 1
    assert model.layer.weight.dtype is torch.float32
    assert not torch.equal(model.layer.weight.detach().cpu(), before)
    runner.save_checkpoint(tmp_path / "scaled.ckpt")
    assert (
        torch.load(tmp_path / "scaled.ckpt", weights_only=True)["ScaledPrecision"]["scale"]
        == precision.scaler.get_scale()
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_s60_ddp_over_nccl(tmp_path: Path) -> None:
    done = run_ranks("nccl.py", [tmp_path / "out"], 2, 200, PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "nccl 2 True"


def test_s55_memory_and_load_of_the_device(tmp_path: Path) -> None:
    sink = Sink()
    trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=1, logger=sink, log_every_n_steps=3,
            callbacks=[DeviceStatsMonitor()]).fit(Net(), loader())  # fmt: skip
    row = next(row for _, row in sink.rows if any(name.startswith("DeviceStatsMonitor") for name in row))
    assert row["DeviceStatsMonitor.on_train_batch_start/allocated_bytes.all.current"] > 0


def test_s65_a_save_takes_no_memory_of_the_device(tmp_path: Path) -> None:
    """The state is copied to the host, piece by piece."""

    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.wide = torch.nn.Linear(2048, 2048)  # 16 MB

    peaks: list[int] = []

    class Peak(L.Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Any) -> None:
            torch.cuda.reset_peak_memory_stats()
            peaks.append(torch.cuda.memory_allocated())

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=1, callbacks=[Peak(), keep]).fit(Wide(), loader(12))
    assert torch.cuda.max_memory_allocated() - peaks[-1] < 4 * 2**20


def test_s60_memory_that_is_pinned_stays_so_on_its_way(tmp_path: Path) -> None:
    class Moved(Net):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert batch[0].is_cuda
            return batch

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert batch[0].is_pinned()
            return batch

    trainer(tmp_path, accelerator="gpu", devices=1, max_epochs=1).fit(Moved(), DataLoader(data(8), 4, pin_memory=True))
