"""A training that leaves a trace: rank 0 appends "<wall time> <step>" to a file after each step. For recovery.py."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import everstep as L


class Trace(L.Callback):
    def __init__(self, path: Path, pause: float) -> None:
        self.file = path.open("a", buffering=1)
        self.pause = pause

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.is_global_zero:
            self.file.write(f"{time.time():.6f} {trainer.global_step}\n")
        time.sleep(self.pause)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds of sleep in each step")
    args = parser.parse_args()
    (args.trace.parent / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()))
    L.seed_everything(1)
    data = TensorDataset(torch.randn(4096, 64), torch.randn(4096, 1))
    trainer = L.Trainer(
        max_steps=args.steps,
        max_epochs=-1,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[Trace(args.trace, args.pause)],
    )
    trainer.fit(Net(), DataLoader(data, batch_size=8))


if __name__ == "__main__":
    main()
