"""Trains on the ranks there are, with a .ckpt file of every step: python kept.py OUT FOLDER [CKPT_PATH]"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.callbacks import ModelCheckpoint


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = torch.nn.Linear(3, 1), torch.nn.Dropout(0.5)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(self.drop(batch[0])).square().mean()
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


out, folder, *ckpt_path = sys.argv[1:]
L.seed_everything(1 if not ckpt_path else 99)
data = TensorDataset(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)))
keep = ModelCheckpoint(folder, "{step}", "loss", save_top_k=-1, every_n_train_steps=1)
model = Net()
trainer = L.Trainer(max_epochs=2, callbacks=[keep], logger=False, enable_progress_bar=False)
trainer.fit(model, DataLoader(data, batch_size=4, shuffle=True), ckpt_path=next(iter(ckpt_path), None))
mean = float(trainer.callback_metrics["loss_epoch"])
found = {"weights": model.layer.weight.tolist(), "mean": mean, "best": Path(keep.best_model_path).name}
Path(f"{out}.{trainer.global_rank}").write_text(json.dumps(found))
