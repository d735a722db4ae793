"""A fit on any number of ranks, its Trainer and module global as in most scripts. Rank 0 says at exit, when everything
else has been cleared away, which threads of torch's process groups are left."""

import atexit
import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import everstep as L


def tell() -> None:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    if os.environ["RANK"] == "0":
        print("left:", *sorted(name for name in names if "gloo" in name))


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


atexit.register(tell)  # before Everstep's own, so it is called after them
trainer = L.Trainer(
    max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
)
model = Model()
trainer.fit(model, DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=2))
tell()
