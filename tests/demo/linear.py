"""The smallest real training: linear layers with dropout, 8 samples a rank and step.

linear.py [--steps 100] [--say-at 3] [--raise-at 3] [--forget-random] [--pause 0.1] [--slow-at 10]

The last two hold in the first generation only: there is time for an accident in it, and what follows is quick.
"""

import argparse
import os
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.trainer.run import Run, process_run

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--pause", type=float, default=0.0, help="seconds that a step takes at least")
parser.add_argument("--say-at", type=int, default=0, help="the step in which every rank prints a line")
parser.add_argument("--raise-at", type=int, default=0, help="the step in which every rank raises")
parser.add_argument("--slow-at", type=int, default=0, help="a step that takes a minute")
parser.add_argument("--forget-random", action="store_true", help="a resume does not restore random states")
args = parser.parse_args()
first = os.environ["EVERSTEP_GENERATION"] == "1"


class Linear(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        step = self.trainer.global_step + 1
        if step == args.raise_at:
            raise ValueError(f"step {step} is too much")
        if step == args.say_at:
            print(f"in step {step}", flush=True)
        if first:
            time.sleep(60 if step == args.slow_at else args.pause)
        inputs, targets = batch
        loss: Tensor = nn.functional.mse_loss(self.net(inputs), targets)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


L.seed_everything(3)
run = process_run()
if args.forget_random:
    run = Run(run.environment, seat=run.seat, restore_rng=False)
inputs = torch.randn(160, 8, generator=torch.Generator().manual_seed(1))
data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8, shuffle=True)
trainer = L.Trainer(
    max_steps=args.steps,
    logger=False,
    enable_progress_bar=False,
    enable_checkpointing=False,
    log_every_n_steps=1,
    run=run,
)
trainer.fit(Linear(), data)
print(f"rank {os.environ.get('RANK', 0)} has done {trainer.global_step} steps", flush=True)
