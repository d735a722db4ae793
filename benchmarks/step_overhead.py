"""What a step of `Trainer.fit` costs over the same step written by hand, on a tiny model where the loop is what costs.

    python benchmarks/step_overhead.py [--blocks 31] [--steps 300]

Both run in this one process, in alternating blocks of a few hundred steps; the figure is CPU time per step, the lower
quartile over the blocks, since noise between processes is larger than the differences. A block's clock starts after its
first 50 steps. Also counted: calls of Python functions per step (sys.setprofile) and, where strace is installed, system
calls per step, as the difference between a long and a short run of each loop, so that start-up cancels out.
"everstep" is the Trainer with everything off, "board+log" the same under a launcher's board and with a `self.log`.
"stream" reads an iterable dataset in this process, barebones; "stream kept" without, so that a checkpoint can be asked
for at any step. Their ratios are to "plain stream".
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from bars import verdict
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import everstep as L
from everstep.board import Board
from everstep.environment import Environment
from everstep.trainer.run import Run

WARM_UP = 50


class Clock:
    """Notes the CPU time at the first step past the warm-up and at the last one."""

    def __init__(self, steps: int) -> None:
        self.last = steps
        self.count = 0
        self.start = self.end = 0.0

    def tick(self) -> None:
        self.count += 1
        if self.count == WARM_UP:
            self.start = time.process_time()
        elif self.count == self.last:
            self.end = time.process_time()

    @property
    def microseconds_per_step(self) -> float:
        return (self.end - self.start) / (self.last - WARM_UP) * 1e6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def loader(steps: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(steps * 16, 32, generator=generator), torch.randn(steps * 16, 1, generator=generator)
    )
    return DataLoader(data, batch_size=16, shuffle=True)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that makes batches and does not say how many."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            yield torch.randn(16, 32, generator=generator), torch.randn(16, 1, generator=generator)


def stream(steps: int) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Endless(steps), batch_size=None)


def plain(steps: int, data: Callable[[int], DataLoader[Any]] = loader) -> Clock:
    """The loop as one writes it by hand."""
    clock = Clock(steps)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for x, y in data(steps):
        clock.tick()
        optimizer.zero_grad()
        loss = mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return clock


class Module(L.LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.net = network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.clock.tick()
        x, y = batch
        return mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Logging(Module):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def fit(module: Module, steps: int, data: Callable[[int], DataLoader[Any]] = loader, **arguments: Any) -> Clock:
    trainer = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        **arguments,
    )
    trainer.fit(module, data(steps))
    assert trainer.global_step == steps, f"{trainer.global_step} of {steps} steps"
    return module.clock


def everstep(steps: int) -> Clock:
    return fit(Module(Clock(steps)), steps)


def plain_stream(steps: int) -> Clock:
    return plain(steps, stream)


def everstep_stream(steps: int) -> Clock:
    """Where no checkpoint can be asked for."""
    module = Module(Clock(steps))
    L.Trainer(max_epochs=1, barebones=True, accelerator="cpu").fit(module, stream(steps))
    return module.clock


def kept_stream(steps: int) -> Clock:
    """Where one can: the place of each batch is noted."""
    return fit(Module(Clock(steps)), steps, stream)


def on_board(steps: int) -> Clock:
    """As under a launcher: each step is entered on the board, a few notes a second are left there."""
    with tempfile.TemporaryDirectory() as folder:
        seat = Board.create(Path(folder) / "board", 1).seat(0)
        return fit(Logging(Clock(steps)), steps, run=Run(Environment.read(), seat=seat))


LOOPS: dict[str, Callable[[int], Clock]] = {
    "plain": plain,
    "everstep": everstep,
    "board+log": on_board,
    "plain stream": plain_stream,
    "stream": everstep_stream,
    "stream kept": kept_stream,
}
BARS = {"everstep": 1.05, "board+log": 1.1, "stream": 1.1, "stream kept": 1.1}


def peer(name: str) -> str:
    return "plain stream" if "stream" in name else "plain"


def python_calls(run: Callable[[int], Clock], steps: int) -> float:
    """Calls of Python functions per step: the difference between a run of 3n and one of n steps."""

    def count(n: int) -> int:
        calls = 0

        def profile(frame: object, event: str, arg: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(profile)
        try:
            run(n)
        finally:
            sys.setprofile(None)
        return calls

    count(WARM_UP + steps)
    return (count(WARM_UP + 3 * steps) - count(WARM_UP + steps)) / (2 * steps)


def system_calls(which: str, steps: int) -> float | None:
    """System calls per step, counted by strace; None where it is not installed."""
    if not shutil.which("strace"):
        return None

    def count(n: int) -> int:
        command = [
            "strace",
            "-f",
            "-c",
            "-U",
            "calls,name",
            sys.executable,
            __file__,
            "--only",
            which,
            "--steps",
            str(n),
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        total = re.findall(r"^\s*(\d+)\s+total$", text, re.M)
        if not total:
            raise SystemExit(f"strace printed no total:\n{text[-500:]}")
        return int(total[-1])

    # Memory that the allocator takes and gives back varies by a few calls between runs: a long distance drowns it.
    return (count(WARM_UP + 11 * steps) - count(WARM_UP + steps)) / (10 * steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=31)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", choices=LOOPS, help="run one loop once, and print nothing (for strace)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # about num_workers; the data is in memory
    if args.only:
        LOOPS[args.only](args.steps)
        return
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    for block in range(args.blocks + 1):
        for name, loop in LOOPS.items():
            cost = loop(WARM_UP + args.steps).microseconds_per_step
            if block > 0:  # the first round warms caches and the allocator
                times[name].append(cost)
    quartile = {name: quantiles(costs, n=4)[0] for name, costs in times.items()}
    print(f"{'loop':12} {'µs of CPU per step':>19} {'ratio':>7} {'Python calls':>13} {'system calls':>13}")
    for name, loop in LOOPS.items():
        calls = python_calls(loop, 200)
        system = system_calls(name, 200)
        ratio = quartile[name] / quartile[peer(name)]
        print(
            f"{name:12} {quartile[name]:19.1f} {ratio:6.3f}x {calls:13.1f} "
            f"{'no strace' if system is None else f'{system:.2f}':>13}  "
            f"{verdict(ratio, most=BARS[name], unit='x') if name in BARS else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
