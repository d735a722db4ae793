"""From one rank to two under DDP: throughput of `Trainer.fit` over that of the same loop written by hand.

    python benchmarks/scaling.py [--blocks 11] [--steps 40]

Both run in turn in the same processes, one thread a rank; a block's clock starts after its first 10 steps. The figures
are steps per second of wall time, and the median over the blocks of the ratio of a block to its neighbour.
"""

import argparse
import time
import warnings
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from bars import verdict
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.strategies.spawn import run_on_ranks

WARM_UP, WIDTH, BATCH = 10, 1024, 64


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


def data(steps: int, ranks: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    samples = steps * BATCH * ranks
    return TensorDataset(torch.randn(samples, WIDTH, generator=generator), torch.randn(samples, 1, generator=generator))


class Clock:
    def __init__(self, steps: int) -> None:
        self.steps, self.count, self.start, self.rate = steps, 0, 0.0, 0.0

    def tick(self) -> None:
        self.count += 1
        if self.count == WARM_UP:
            self.start = time.perf_counter()
        elif self.count == self.steps:
            self.rate = (self.steps - WARM_UP) / (time.perf_counter() - self.start)


def by_hand(steps: int, ranks: int) -> float:
    clock, model = Clock(steps), network()
    step: Any = model
    dataset = data(steps, ranks)
    sampler = None
    if ranks > 1:
        step = DistributedDataParallel(model)
        sampler = torch.utils.data.DistributedSampler(dataset, shuffle=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in DataLoader(dataset, BATCH, sampler=sampler):
        optimizer.zero_grad()
        mse_loss(step(x), y).backward()
        optimizer.step()
        clock.tick()
    return clock.rate


class Module(L.LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.net = clock, network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return mse_loss(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.tick()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def everstep(steps: int, ranks: int) -> float:
    clock = Clock(steps)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(clock), DataLoader(data(steps, ranks), BATCH))
    return clock.rate


def in_turn(blocks: int, steps: int, ranks: int) -> list[tuple[float, float]]:
    """Steps per second by hand and of Everstep, block by block. On one of the ranks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # about num_workers; the data is in memory
    if ranks > 1:
        dist.init_process_group("gloo")
    found = [(by_hand(steps, ranks), everstep(steps, ranks)) for _ in range(blocks + 1)]
    return found[1:]  # the first one warms caches and connections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    one, two = (run_on_ranks(in_turn, (args.blocks, args.steps, n), n, "fork")[0] for n in (1, 2))
    print(f"{'loop':10} {'1 rank':>10} {'2 ranks':>10} {'1 -> 2':>8}   steps/s of a rank; throughput of 2 over 1")
    for number, name in enumerate(("by hand", "Everstep")):
        alone, together = (median(rates[number] for rates in found) for found in (one, two))
        print(f"{name:10} {alone:10.1f} {together:10.1f} {2 * together / alone:7.3f}x")
    ratio = median(ours / theirs for theirs, ours in two)
    print(f"Everstep over hand-written DDP on 2 ranks: {ratio:.3f}x  {verdict(ratio, least=0.98, unit='x')}")


if __name__ == "__main__":
    main()
