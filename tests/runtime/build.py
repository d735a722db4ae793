"""Small models, data and runs for tests in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.callbacks import Checkpoint, ModelSummary, ProgressBar
from everstep.environment import Environment
from everstep.trainer.run import Run
from everstep_protocol.checkpoints import Retention
from everstep_protocol.messages import CheckpointInfo

ALONE = Environment()


def data(samples: int = 24) -> TensorDataset:
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(samples: int = 24, batch_size: int = 4, **more: Any) -> DataLoader[Any]:
    return DataLoader(data(samples), batch_size=batch_size, **more)


class Net(L.LightningModule):
    """A linear model that logs; `optimizers_` may replace what configure_optimizers returns."""

    def __init__(self, configure: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.configure = configure or (lambda module: torch.optim.SGD(module.parameters(), lr=0.1))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return mse_loss(self.layer(x), y)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        result: Tensor = self.layer(batch[0])
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))


@dataclass
class Saved:
    name: str
    call: int
    step: int
    shared: Any
    rank: Any
    info: CheckpointInfo


@dataclass
class Memory:
    """Checkpoints in memory, with the interface that the run uses. Survives `Run`s, as storage does."""

    every_steps: int | None = None
    retention: Retention = Retention()
    saved: list[Saved] = field(default_factory=list)
    last_checkpoint: CheckpointInfo | None = None
    resumed_from: CheckpointInfo | None = None
    not_durable_since: float | None = None
    not_durable_why: str = ""

    def open(self, needs: Any = None) -> Saved | None:
        return self.saved[-1] if self.saved else None

    def load(self, name: str) -> Saved:
        return next(saved for saved in self.saved if saved.name == name)

    def save(
        self, call: int, step: int, shared: Any, rank: Any, *, keep_forever: bool = False, wait: bool = False,
        score: float | None = None,
    ) -> str:  # fmt: skip
        info = CheckpointInfo(step, "memory://", 1, 1, 0.0)
        name = f"{call}-{step}"
        self.saved.append(Saved(name, call, step, *_copy((shared, rank)), info))
        self.last_checkpoint = info
        return name

    def wait(self) -> None: ...

    def close(self) -> None: ...

    def forget_after(self, count: int) -> "Memory":
        """What there would be if the process had died after `count` saves."""
        return replace(self, saved=[replace(s, shared=_copy(s.shared)) for s in self.saved[:count]])


def _copy(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copy(value) for value in tree)
    return tree


def trainer(folder: Path, checkpoints: Memory | None = None, seat: Any = None, **more: Any) -> L.Trainer:
    run = more.pop("run", None) or Run(ALONE, seat=seat, open_checkpoints=lambda _: checkpoints)
    flags = {
        "enable_progress_bar": ProgressBar,
        "enable_checkpointing": Checkpoint,
        "enable_model_summary": ModelSummary,
    }
    given = more.get("callbacks") or []
    callbacks = given if isinstance(given, list) else [given]
    quiet = {flag: False for flag, kind in flags.items() if not any(isinstance(c, kind) for c in callbacks)}
    quiet["logger"] = False
    return L.Trainer(**{"max_epochs": 2, **quiet, "default_root_dir": folder, **more}, run=run)
