"""DistributedDataParallel over gloo: each rank has the whole model, gradients are averaged."""

import atexit
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from everstep.environment import Environment
from everstep.strategies.base import Strategy


class DDPStrategy(Strategy):
    """Args:
    bucket_cap_mb: gradients are averaged in buckets of at most this size, as soon as a bucket is complete.
    find_unused_parameters: for models of which a step does not use every parameter; costs a walk of the graph.
    """

    name = "ddp"

    def __init__(self, bucket_cap_mb: float = 25.0, find_unused_parameters: bool = False) -> None:
        super().__init__()
        self.bucket_cap_mb = bucket_cap_mb
        self.find_unused_parameters = find_unused_parameters
        self._ddp: DistributedDataParallel | None = None
        self._quiet = False  # gradients of manual backwards stay here

    def connect(self, environment: Environment) -> None:
        super().connect(environment)
        if environment.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
            atexit.register(_disconnect)

    @property
    def rank(self) -> int:
        return self.environment.rank

    @property
    def world_size(self) -> int:
        return self.environment.world_size

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.world_size == 1 or not parameters:
            return step
        ddp = self._ddp = DistributedDataParallel(
            _Redirect(module),
            bucket_cap_mb=self.bucket_cap_mb,
            find_unused_parameters=self.find_unused_parameters,
        )
        _settle_buckets(ddp, parameters)

        def synchronised(*args: Any) -> Any:
            return ddp(step, *args)

        return synchronised

    def synchronise_gradients(self, now: bool) -> None:
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = now

    @contextlib.contextmanager
    def without_sync(self) -> Iterator[None]:
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def share_gradients(self, module: nn.Module) -> None:
        gradients = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
        if self.world_size == 1 or self._quiet or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = flat.split([gradient.numel() for gradient in gradients])  # type: ignore[no-untyped-call]
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def align_buffers(self, module: nn.Module) -> None:
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer.data, src=0)

    def reduce(self, tensor: Tensor, operation: Literal["sum", "min", "max"] = "sum") -> Tensor:
        if self.world_size > 1:
            operations = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
            dist.all_reduce(tensor, operations[operation])
        return tensor

    def all_gather(self, tensor: Tensor, sync_grads: bool = False) -> Tensor:
        if self.world_size == 1:
            return tensor[None]
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(all_gather(tensor))  # type: ignore[no-untyped-call]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.stack(parts)

    def all_true(self, flag: bool) -> bool:
        return bool(self.reduce(torch.tensor(int(flag)), "min"))

    def broadcast(self, text: str) -> str:
        if self.world_size == 1:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor(len(data))
        dist.broadcast(size, src=0)
        if self.rank != 0:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode()

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def unwrap(self) -> None:
        self._ddp = None


class _Redirect(nn.Module):
    """DDP prepares and finishes a step around `forward`; this one's forward is whatever function it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def _settle_buckets(ddp: DistributedDataParallel, parameters: list[nn.Parameter]) -> None:
    """One backward of zeros. DDP lays its buckets out anew after its first backward, in the order in which gradients
    came, and a ring sums in an order that depends on the layout: so the first real step of a resumed process would
    differ in the last bit from the same step of one that has run for a while. After this it is final in both."""

    def zeros() -> Tensor:
        # Later operations run first in the backward: gradients come last layer first, as in a real step.
        total = torch.zeros(())
        for parameter in parameters:
            total = total + parameter.flatten()[:1].sum() * 0.0
        return total

    ddp(zeros).backward()
    for parameter in parameters:
        parameter.grad = None


def _disconnect() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # a peer has gone already
            dist.destroy_process_group()
