"""What the tests of exactness run, on any number of ranks. Rank 0 leaves a JSON of what the training came to.

    exact.py OUT [--kill-at CALL:STEP] [--workers N] [--no-rng] ...

--kill-at: rank 1 (or the only one) SIGKILLs itself when it enters that batch of that call, 0 (fit) or 1 (test); or at
val:STEP, in the validation after that step; or at save:STEP, when half of its part of that checkpoint is written.
"""

import argparse
import hashlib
import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import everstep as L
from everstep.checkpoint import file
from everstep.checkpoint.file import FileStorage
from everstep.checkpoint.storage import Body
from everstep.strategies import DDPStrategy
from everstep.trainer.run import Run, process_run

parsed = argparse.Namespace()


class Augmented(Dataset[tuple[Tensor, Tensor, int]]):
    """Draws from all three generators for each sample."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(size, 12, generator=generator)
        self.y = torch.randint(0, 3, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        noise = torch.randn(12) * 0.1 + random.random() * 0.1 + float(np.random.rand()) * 0.1
        return self.x[index] + noise, self.y[index], index


class Net(L.LightningModule):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        layers: list[nn.Module] = [nn.Linear(12, 32), nn.ReLU()]
        if not args.plain:
            layers += [nn.BatchNorm1d(32), nn.Dropout(0.3)]
        self.net = nn.Sequential(*layers, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
        self.seen: list[tuple[int, list[int]]] = []
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y, index = batch
        die_at(self.args, 0, self.trainer.global_step)
        self.seen.append((self.current_epoch, index.tolist()))
        loss = cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        die_at(self.args, "val", self.trainer.global_step)
        x, y, _ = batch
        self.log("val_loss", cross_entropy(self.net(x), y), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        die_at(self.args, 1, batch_idx)
        x, y, _ = batch
        self.log("test_loss", cross_entropy(self.net(x), y), sync_dist=True)
        self.log("count", float(len(y)), reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self) -> Any:
        if self.args.plain:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Counter(L.Callback):
    def __init__(self) -> None:
        self.batches = 0
        self.buckets = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for ddp in getattr(trainer.strategy, "_wrapped", ()):  # what DDP says of itself
            self.buckets = len(ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(","))

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class HalfWritten(FileStorage):
    """Dies in the middle of writing a checkpoint."""

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        def pieces() -> Iterator[memoryview | bytes]:
            for piece in body.pieces():
                yield piece[: len(piece) // 2]
                die_at(parsed, "save", int(key.split("/")[1].split("-")[2]))
                yield piece[len(piece) // 2 :]

        super().put(key, replace(body, pieces=pieces) if key.startswith("data/") else body, create_only=create_only)


def die_at(args: argparse.Namespace, call: int | str, step: int) -> None:
    victim = min(1, int(os.environ.get("WORLD_SIZE", 1)) - 1)
    if args.kill_at == f"{call}:{step}" and int(os.environ.get("RANK", 0)) == victim:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill-at", default="")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=104)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="no dropout, no batch norm: exact over any world size")
    parser.add_argument("--no-rng", action="store_true")
    args = parser.parse_args(namespace=parsed)
    file.FileStorage = HalfWritten  # type: ignore[misc]
    torch.set_num_threads(1)
    L.seed_everything(11)
    environment = process_run().environment
    run = Run(environment, seat=process_run().seat, restore_rng=not args.no_rng)
    data = Augmented(args.samples)
    if args.plain:
        data = torch.utils.data.StackDataset(data.x, data.y, list(range(args.samples)))  # type: ignore[assignment]
    loader: DataLoader[Any] = DataLoader(data, args.batch_size, shuffle=True, num_workers=args.workers)
    model, counter = Net(args), Counter()

    trainer = L.Trainer(
        run=run,
        max_epochs=args.epochs,
        strategy=DDPStrategy(bucket_cap_mb=0.001) if environment.world_size > 1 else "auto",
        gradient_clip_val=1.0,
        callbacks=[counter],
        enable_progress_bar=False,
        log_every_n_steps=2,
        num_sanity_val_steps=2,
        default_root_dir=args.out.parent / "logs",
    )
    val: DataLoader[Any] = DataLoader(data, 16)
    trainer.fit(model, loader, val)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (result,) = trainer.test(model, val)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    out = {
        "weights": digest.hexdigest(),
        "result": result,
        "metrics": metrics,
        "batches": counter.batches,
        "steps": trainer.global_step,
        "buckets": counter.buckets,
        "seen": model.seen,
        "parameters": {name: value.tolist() for name, value in model.named_parameters()} if args.plain else {},
        "random": [random.random(), float(np.random.rand()), float(torch.rand(()))],
    }
    args.out.with_suffix(f".{environment.rank}").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
