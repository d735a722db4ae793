"""What training costs over the loop that one writes by hand: Everstep; Lightning, Fabric, Accelerate where they are.

    python benchmarks/peers.py [--blocks 31] [--steps 150] [--batches 12]

Three tables, each with the hand-written loop in the same process, in alternating blocks; the lower quartile counts:
    bare    a tiny MLP, everything off. CPU time per step.
    logged  the same as a classifier: loss and an accuracy metric per step and per epoch, a progress bar, a CSV file.
    resnet  an epoch of a ResNet-18 for 32x32 images. CPU time.
"""

import argparse
import csv
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from bars import verdict
from step_overhead import WARM_UP, Clock, everstep, loader, network, plain
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, relu
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep import metrics

assert metrics.MeanMetric, "everstep.metrics sees to torchvision beside a CPU build of torch, before torchmetrics loads"
from torchmetrics.classification import MulticlassAccuracy  # noqa: E402

Loop = Callable[[int], Clock]
OFF = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}


def peers() -> dict[str, Loop]:
    """The bare loop of each that is installed."""
    found: dict[str, Loop] = {}
    try:
        import lightning
        from lightning.fabric import Fabric
    except ImportError:
        pass
    else:
        logging.getLogger("lightning").setLevel(logging.ERROR)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

        class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self, clock: Clock) -> None:
                super().__init__()
                self.clock, self.net = clock, network()

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                self.clock.tick()
                return mse_loss(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.01)

        def of_lightning(steps: int) -> Clock:
            module = Module(Clock(steps))
            lightning.Trainer(max_epochs=1, accelerator="cpu", **OFF).fit(module, loader(steps))
            return module.clock

        def of_fabric(steps: int) -> Clock:
            fabric, clock = Fabric(accelerator="cpu"), Clock(steps)
            model = network()
            model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.01))
            for x, y in fabric.setup_dataloaders(loader(steps)):
                clock.tick()
                optimizer.zero_grad()
                fabric.backward(mse_loss(model(x), y))
                optimizer.step()
            return clock

        found |= {"Lightning": of_lightning, "Fabric": of_fabric}
    try:
        from accelerate import Accelerator
    except ImportError:
        return found

    def of_accelerate(steps: int) -> Clock:
        accelerator, clock = Accelerator(cpu=True), Clock(steps)
        model = network()
        model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01), loader(steps))
        for x, y in data:
            clock.tick()
            optimizer.zero_grad()
            accelerator.backward(mse_loss(model(x), y))
            optimizer.step()
        return clock

    return {**found, "Accelerate": of_accelerate}


# With logging.


def classes(steps: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps * 16, 32, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 10, (steps * 16,), generator=generator)), 16, shuffle=True)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def by_hand(steps: int) -> Clock:
    """Means weighed by samples, numbers fetched for the file every 50 steps and for the bar five times a second."""
    clock, model, accuracy = Clock(steps), classifier(), MulticlassAccuracy(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    total, count, shown = torch.zeros((), dtype=torch.float64), 0, 0.0
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for step, (x, y) in enumerate(classes(steps), start=1):
            clock.tick()
            optimizer.zero_grad()
            logits = model(x)
            loss = cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            now = accuracy(logits, y)
            total.add_(loss.detach(), alpha=len(y))
            count += len(y)
            if step % 50 == 0:
                writer.writerow([step, float(loss), float(now)])
            if time.monotonic() > shown + 0.2:
                shown = time.monotonic()
                sys.stderr.write(f"\r{step}/{steps} loss {float(loss):.4g}")
        writer.writerow([steps, float(total / count), float(accuracy.compute())])
    return clock


def logged(library: Any, steps: int) -> Clock:
    """By a library with Lightning's names."""

    class Logged(library.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, clock: Clock) -> None:
            super().__init__()
            self.clock, self.net, self.accuracy = clock, classifier(), MulticlassAccuracy(10)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.clock.tick()
            x, y = batch
            logits = self.net(x)
            loss = cross_entropy(logits, y)
            self.accuracy(logits, y)
            self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("accuracy", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Logged(Clock(steps))
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.Trainer(
            max_epochs=1, accelerator="cpu", logger=library.loggers.CSVLogger(folder), enable_checkpointing=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, classes(steps))
    return module.clock


# ResNet-18 for 32x32 images.


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        same = before == after and stride == 1
        self.short: nn.Module = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.two(self.one(x)) + self.short(x))


def resnet18() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(Block(before, after, stride))
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def images(batches: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * 16, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 10, (batches * 16,), generator=generator)), 16, shuffle=True)


class Images(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def epoch_by_hand(batches: int) -> float:
    model, data = resnet18(), images(batches)
    start = time.process_time()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return time.process_time() - start


def epoch_of_everstep(batches: int) -> float:
    model, data = Images(), images(batches)
    start = time.process_time()
    L.Trainer(max_epochs=1, accelerator="cpu", **OFF).fit(model, data)
    return time.process_time() - start


class Terminal(io.StringIO):
    """Nobody looks at it, but bars do not know."""

    def isatty(self) -> bool:
        return True


def table(title: str, unit: str, loops: dict[str, Callable[[], float]], blocks: int, most: float) -> None:
    costs: dict[str, list[float]] = {name: [] for name in loops}
    for block in range(blocks + 1):
        for name, loop in loops.items():
            with redirect_stderr(Terminal()), redirect_stdout(Terminal()):
                cost = loop()
            if block > 0:  # the first round warms caches and the allocator
                costs[name].append(cost)
    quartile = {name: quantiles(values, n=4)[0] for name, values in costs.items()}
    base = next(iter(quartile.values()))
    print(f"\n{title}\n{'loop':12} {unit:>20} {'ratio':>7}")
    for name, value in quartile.items():
        ratio = value / base
        bar = verdict(ratio, most=most, unit="x") if name == "Everstep" else ""
        print(f"{name:12} {value:20.4g} {ratio:6.3f}x  {bar}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=31)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batches", type=int, default=12, help="of 16 images, in an epoch of the ResNet")
    parser.add_argument("--only", choices=["bare", "logged", "resnet"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    steps = WARM_UP + args.steps

    def timed(loops: dict[str, Loop]) -> dict[str, Callable[[], float]]:
        return {name: lambda loop=loop: loop(steps).microseconds_per_step for name, loop in loops.items()}  # type: ignore[misc]

    if args.only in (None, "bare"):
        loops: dict[str, Loop] = {"by hand": plain, "Everstep": everstep, **peers()}
        table("bare: a tiny MLP", "µs of CPU per step", timed(loops), args.blocks, 1.05)
    if args.only in (None, "logged"):
        loops = {"by hand": by_hand, "Everstep": lambda steps: logged(L, steps)}
        if find_spec("lightning"):
            import lightning.pytorch

            loops["Lightning"] = lambda steps: logged(lightning.pytorch, steps)
        table("logged: loss, accuracy, bar, CSV", "µs of CPU per step", timed(loops), args.blocks, 1.10)
    if args.only in (None, "resnet"):
        epochs = {"by hand": epoch_by_hand, "Everstep": epoch_of_everstep}
        table(
            "resnet: an epoch of a ResNet-18",
            "s of CPU per epoch",
            {name: lambda epoch=epoch: epoch(args.batches) for name, epoch in epochs.items()},  # type: ignore[misc]
            max(3, args.blocks // 4),
            1.01,
        )


if __name__ == "__main__":
    main()
