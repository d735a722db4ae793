"""From one rank to two under DDP: throughput of `Trainer.fit` over that of the same loop written by hand.

    python benchmarks/scaling.py [--blocks 5] [--steps 60]

Both run in turn, each block in fresh processes that are forked here, one thread a rank. The figure is steps per second
of wall time, the median over the blocks; a block's clock starts after its first 10 steps.
"""

import argparse
import time
import warnings
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
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
    torch.set_num_threads(1)
    step: Any = model
    dataset = data(steps, ranks)
    sampler = None
    if ranks > 1:
        dist.init_process_group("gloo")
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
    torch.set_num_threads(1)
    clock = Clock(steps)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(clock), DataLoader(data(steps, ranks), BATCH))
    return clock.rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # about num_workers; the data is in memory
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.blocks):
        for ranks in (1, 2):
            for loop in (by_hand, everstep):
                found = run_on_ranks(loop, (args.steps, ranks), ranks, "fork")
                rates.setdefault((loop.__name__, ranks), []).append(min(found))
    medians = {key: median(values) for key, values in rates.items()}
    print(f"{'loop':10} {'1 rank':>10} {'2 ranks':>10} {'1 -> 2':>8}   steps/s of a rank; throughput of 2 over 1")
    for name in ("by_hand", "everstep"):
        one, two = medians[name, 1], medians[name, 2]
        print(f"{name:10} {one:10.1f} {two:10.1f} {2 * two / one:7.3f}x")
    ratio = medians["everstep", 2] / medians["by_hand", 2]
    print(f"everstep over hand-written DDP on 2 ranks: {ratio:.3f}x (bar: 0.98x)")


if __name__ == "__main__":
    main()
