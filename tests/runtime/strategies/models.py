"""Models for tests with several ranks. At the top of a module, so that other processes can be given them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import everstep as L

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return result


class Blocks(L.LightningModule):
    """A small stack of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.make()

    def make(self) -> None:
        self.first = nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.last(x)
        return result

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mse_loss(self(batch[0]).float(), batch[1].float())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test_loss", self.loss(batch), sync_dist=True)
        self.log("count", float(len(batch[0])), reduce_fx="sum", sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).flatten()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class OnMeta(Blocks):
    """Its layers are made by configure_model, without memory."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)

    def configure_model(self) -> None:
        if not hasattr(self, "first"):
            with torch.device("meta"):
                self.make()


class Fails(Blocks):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2 and self.global_rank == 1:
            raise ValueError("rank one has had enough")
        return super().training_step(batch, batch_idx)


class Divided(Blocks):
    """Its blocks are tensor parallel."""

    def configure_model(self) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = self.device_mesh
        if mesh is None or hasattr(self.blocks[0].up.weight, "device_mesh"):
            return
        for block in self.blocks:
            parallelize_module(block, mesh["tensor_parallel"], {"up": ColwiseParallel(), "down": RowwiseParallel()})


def data(samples: int = 22) -> TensorDataset:
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(batch_size: int, samples: int = 22, **more: Any) -> DataLoader[Any]:
    return DataLoader(data(samples), batch_size=batch_size, **more)


class Noise(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that draws from its process's generators, longer on rank 0."""

    def __iter__(self) -> Any:
        rank = torch.distributed.get_rank()
        for _ in range(14 if rank else 18):
            yield torch.randn(3) + rank, torch.ones(1)
