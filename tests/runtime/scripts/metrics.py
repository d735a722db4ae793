"""Metric objects on several ranks: python metrics.py <where the values go> <batch size>"""

import sys
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import everstep as pl


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.accuracy, self.val_accuracy = pl.metrics.Accuracy(), pl.metrics.Accuracy()
        self.f1 = pl.metrics.F1Score(task="multiclass", num_classes=3, average="macro")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        scores = self.layer(batch[0])
        self.accuracy(scores, batch[1])
        self.log("acc", self.accuracy, on_step=False, on_epoch=True)
        self.f1(scores, batch[1])
        self.log("f1", self.f1, on_step=False, on_epoch=True)
        self.log("mean", batch[0].mean(), on_step=False, on_epoch=True, sync_dist=True)
        return cross_entropy(scores, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_accuracy(self.layer(batch[0]), batch[1])
        self.log("val_acc", self.val_accuracy)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def loader(samples: int) -> Any:
    random = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(samples, 4, generator=random), torch.randint(3, (samples,), generator=random))
    return DataLoader(data, batch_size=int(sys.argv[2]))


if __name__ == "__main__":
    pl.seed_everything(7)
    trainer = pl.Trainer(max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.fit(Module(), loader(25), loader(5))
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save(values, f"{sys.argv[1]}{trainer.global_rank}.pt")
