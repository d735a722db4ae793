"""Two optimizers on one module, stepped by hand or in turn, on any number of ranks. Rank 0 leaves the weights as JSON.

adversaries.py OUT [--automatic] [--none-on RANK]
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import everstep as L


class Adversaries(L.LightningModule):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.automatic_optimization = args.automatic or args.none_on is not None
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

    def loss(self, batch: Any) -> Any:
        return (self.second(self.first(batch[0]).tanh()) - batch[1]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.args.none_on == self.global_rank:
            return None
        loss = self.loss(batch)
        if self.automatic_optimization:
            return loss
        one, two = self.optimizers()
        with one.toggle_model():
            one.zero_grad()
            self.manual_backward(loss)
            one.step()
        with two.toggle_model():
            two.zero_grad()
            self.manual_backward(-0.1 * self.loss(batch))
            two.step()
        return None

    def configure_optimizers(self) -> Any:
        one = torch.optim.SGD(self.first.parameters(), lr=0.1)
        if self.args.none_on is not None:
            return one
        return [one, torch.optim.SGD(self.second.parameters(), lr=0.05)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--automatic", action="store_true")
    parser.add_argument("--none-on", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    L.seed_everything(4)
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    model = Adversaries(args)
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu",
        strategy="auto",
    )  # fmt: skip
    world = trainer.world_size
    trainer.fit(model, DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=12 // world))
    gathered = model.all_gather({"rank": torch.tensor([trainer.global_rank])})
    out = {
        "weights": {name: value.tolist() for name, value in model.named_parameters()},
        "steps": trainer.global_step,
        "ranks": gathered["rank"].flatten().tolist(),
    }
    args.out.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
