"""Handwritten digits on as many ranks as the launcher gives: fit, then test, in one script.

    python train.py                                   # alone, on this machine
    everstep launch --nproc-per-node 3 train.py       # three ranks on this machine
    everstep run -f trainingrun.yaml                  # as a TrainingRun

The data is scikit-learn's copy of the UCI handwritten digits: 1,797 grey images of 8 x 8 pixels, inside the wheel.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import everstep as L
from everstep.strategies import DDPStrategy


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Each image shifted by up to a pixel, turned a little brighter or darker, with some noise: other each epoch."""

    def __init__(self, images: Dataset[tuple[Tensor, ...]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[index]
        dx, dy = torch.randint(-1, 2, (2,)).tolist()
        image = torch.roll(image, (dx, dy), dims=(1, 2)) * (0.9 + 0.2 * torch.rand(()))
        return image + 0.05 * torch.randn(image.shape), label


class Digits(L.LightningDataModule):
    """Train, validation and test split of 1257, 180 and 360 images, float32 of shape (1, 8, 8) in 0..1."""

    def __init__(self, batch_size: int = 16, workers: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.workers = workers

    def setup(self, stage: str | None = None) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(
            torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels, dtype=torch.long)
        )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        self.train = Augmented(Subset(data, order[:1257]))
        self.val = Subset(data, order[1257:1437])
        self.test = Subset(data, order[1437:])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            self.train,
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, batch_size=60)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=60)


class DigitNet(L.LightningModule):
    """A small convolutional network: logits of shape (batch, 10) from images of shape (batch, 1, 8, 8)."""

    def __init__(self, learning_rate: float = 2e-3, epochs: int = 1) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.epochs = epochs

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.net = nn.Sequential(
            *block(1, 32), *block(32, 32), nn.MaxPool2d(2),
            *block(32, 64), *block(64, 64), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, "test")

    def evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log(f"{stage}_loss", cross_entropy(logits, labels), on_epoch=True, sync_dist=True)
        self.log(f"{stage}_acc", accuracy, on_epoch=True, sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers per rank")
    args = parser.parse_args()

    L.seed_everything(7, workers=True)
    data = Digits(args.batch_size, args.workers)
    model = DigitNet(epochs=args.epochs)
    # A tenth of a megabyte a bucket: this small model then has several, as a large one has with the default of 25.
    strategy = DDPStrategy(bucket_cap_mb=0.1) if torch.distributed.is_torchelastic_launched() else "auto"
    trainer = L.Trainer(
        max_epochs=args.epochs,
        strategy=strategy,
        logger=False,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_checkpointing=False,  # no .ckpt files: the run keeps its own checkpoints
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    (result,) = trainer.test(model, data)
    if trainer.is_global_zero:
        print(f"test accuracy {result['test_acc']:.4f}", flush=True)


if __name__ == "__main__":
    main()
