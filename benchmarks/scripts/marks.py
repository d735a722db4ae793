"""A training on any number of ranks that says when it was where: "mark <what> <seconds since the epoch>" on stdout."""

import time


def mark(what: str) -> None:
    print("mark", what, f"{time.time():.3f}", flush=True)


mark("began")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import everstep as L  # noqa: E402

mark("imported")


class Marks(L.Callback):
    """The first step; and each takes a tenth of a second."""

    said = False

    def on_train_batch_end(self, *_: object) -> None:
        if not self.said:
            mark("step")
        self.said = True
        time.sleep(0.1)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


data = DataLoader(TensorDataset(torch.randn(4096, 64), torch.randn(4096, 1)), batch_size=8)
trainer = L.Trainer(max_epochs=1000, callbacks=[Marks()], logger=False, enable_progress_bar=False)
trainer.fit(Net(), data)
