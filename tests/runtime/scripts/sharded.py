"""A fit under FSDP that notes what its state is when it is saved and when it was loaded.

    sharded.py OUT [--kill-at STEP | --only-load] [--tensor RANKS] [--ckpt FILE]

OUT/saved-<step> and OUT/loaded-<step>.<world> hold a hash over all bits of weights and optimizer state. Before it is
killed it leaves OUT/whole.ckpt as well. With --tensor the model is tensor parallel over so many ranks.
"""

import argparse
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import torch

import everstep as L
from everstep.strategies import FSDPStrategy, ModelParallelStrategy
from tests.runtime.strategies.models import Blocks, Divided, loader


class Notes(L.Callback):
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.note(trainer, f"saved-{trainer.global_step}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:
            self.note(trainer, f"loaded-{trainer.global_step}.{trainer.world_size}")
        if self.args.only_load:
            trainer.strategy.barrier()
            os._exit(0)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.args.kill_at:
            trainer.save_checkpoint(self.args.out / "whole.ckpt")
            if trainer.is_global_zero:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(self, trainer: L.Trainer, name: str) -> None:
        assert trainer.lightning_module is not None
        state = [trainer.lightning_module.state_dict(), trainer.optimizers[0].state_dict()]
        digest = hashlib.sha256()
        whole = trainer.strategy.gather(state)
        if trainer.is_global_zero:
            for part in tensors(whole):
                digest.update(part.numpy().tobytes())
            (self.args.out / name).write_text(digest.hexdigest())


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for value in values for tensor in tensors(value)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--only-load", action="store_true")
    parser.add_argument("--tensor", type=int)
    parser.add_argument("--ckpt", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    L.seed_everything(3)
    strategy = FSDPStrategy() if args.tensor is None else ModelParallelStrategy("auto", args.tensor)
    trainer = L.Trainer(
        max_epochs=3, strategy=strategy, callbacks=[Notes(args)], enable_progress_bar=False, logger=False,
        enable_checkpointing=False, default_root_dir=args.out,
    )  # fmt: skip
    trainer.fit(Blocks() if args.tensor is None else Divided(), loader(3), loader(3), ckpt_path=args.ckpt)


if __name__ == "__main__":
    main()
