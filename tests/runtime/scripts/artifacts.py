"""A fit with files of loggers in a folder of this node; one that is killed has copied them before.

artifacts.py NODE [--kill-at STEP]
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.loggers import CSVLogger, TensorBoardLogger
from tests.runtime.build import Validated, loader


class Logs(Validated):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss


class Kill(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            trainer.keeper.end()  # what was begun in the background is done
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("node", type=Path)
    parser.add_argument("--kill-at", type=int, default=-1)
    args = parser.parse_args()
    L.seed_everything(3)
    keep = ModelCheckpoint(monitor="val_loss", filename="{step}", save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=3, log_every_n_steps=1, callbacks=[keep, Kill(args.kill_at)], enable_progress_bar=False,
        logger=[CSVLogger(args.node, "csv"), TensorBoardLogger(args.node, "board")], default_root_dir=args.node,
        enable_model_summary=False, profiler=L.profilers.SimpleProfiler(filename="profile"),
    )  # fmt: skip
    trainer.fit(Logs(), loader(), loader())
    print(trainer.logger.log_dir, keep.best_model_path)


if __name__ == "__main__":
    main()
