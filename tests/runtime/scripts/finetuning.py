"""A backbone that joins training later: python finetuning.py <where the weights go> <batch size>"""

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import everstep as L
from everstep.callbacks import BackboneFinetuning


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4))
        self.head = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.mse_loss(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


if __name__ == "__main__":
    L.seed_everything(3)
    module = Module()
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    trainer = L.Trainer(
        max_epochs=3, logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=int(sys.argv[2])))
    torch.save(module.state_dict(), f"{sys.argv[1]}{trainer.global_rank}.pt")
