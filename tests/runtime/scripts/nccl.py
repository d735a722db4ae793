"""A fit under DDP on the CUDA devices there are.

    nccl.py OUT

OUT holds the backend for tensors on devices, the ranks, and whether they have come to the same weights.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import everstep as L
from everstep.strategies import DDPStrategy
from tests.runtime.strategies.models import Blocks, loader


def main() -> None:
    L.seed_everything(3)
    trainer = L.Trainer(
        max_epochs=1, accelerator="gpu", strategy=DDPStrategy(), enable_progress_bar=False, logger=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    model = Blocks()
    trainer.fit(model, loader(3), loader(3))
    weights = trainer.strategy.all_gather(model.last.weight.detach())
    same = all(torch.equal(weights[0], other) for other in weights)
    if trainer.is_global_zero:
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).name()
        Path(sys.argv[1]).write_text(f"{backend} {trainer.world_size} {same}")


if __name__ == "__main__":
    main()
