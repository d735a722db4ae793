"""examples/cifar10/train.py, killed once in the fit and once after the test; writes down every step that it takes.

python killed.py <journal> <arguments of train.py>
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import everstep
from everstep.callbacks import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "cifar10"))
import train

JOURNAL = Path(sys.argv.pop(1)).absolute()


def note(line: str) -> None:
    with JOURNAL.open("a") as file:
        file.write(f"{line}\n")


def die_once(where: str) -> None:
    if where not in JOURNAL.read_text().splitlines():
        note(where)
        os.kill(os.getpid(), signal.SIGKILL)


class Watch(Callback):
    def on_train_batch_end(self, trainer: everstep.Trainer, *_: Any) -> None:
        note(f"step {trainer.global_step}")
        if trainer.global_step == 3:
            die_once("killed in the fit")

    def on_validation_epoch_end(self, trainer: everstep.Trainer, *_: Any) -> None:
        note(f"validated {trainer.global_step}")

    def on_test_batch_end(self, *_: Any) -> None:
        note("tested")


class Watched(everstep.Trainer):
    latest: "Watched"

    def __init__(self, **arguments: Any) -> None:
        Watched.latest = self
        super().__init__(**{**arguments, "callbacks": [Watch(), *arguments["callbacks"]]})


trace = torch.jit.trace


def traced(*args: Any, **kwargs: Any) -> Any:
    die_once("killed after the test")
    return trace(*args, **kwargs)


note("a life begins")
everstep.Trainer = Watched  # type: ignore[misc]
torch.jit.trace = traced
train.main()
note(f"best {Watched.latest.best_model_path}")
note("done")
