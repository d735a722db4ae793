"""Several ranks in one process group: joining it, and its collectives. What they do with a model is the subclass's."""

import atexit
import contextlib
import gc
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from everstep import unknown_arguments
from everstep.environment import Environment
from everstep.strategies.base import Strategy


class ParallelStrategy(Strategy):
    """Args:
    process_group_backend: of torch.distributed; default: what suits the accelerator.
    timeout: how long a collective may wait for the other ranks; default: torch's own.
    start_method: "spawn" or "fork": how a script or notebook that was started alone starts its ranks itself, for each
        Trainer call (`spawn.py`); default: by what it is. None as well where a launcher has started them.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: str | None = None,
        **unknown: Any,
    ) -> None:
        unknown_arguments.refuse(type(self).__name__, type(self), unknown)
        super().__init__()
        self.start_method = start_method
        self.process_group_backend = process_group_backend
        self.timeout = timeout
        self._data_group: Any = None  # over which values of different samples are reduced; None: all ranks

    def connect(self, environment: Environment) -> None:
        super().connect(environment)
        self.accelerator.activate(self.root_device)
        if environment.world_size > 1 and not dist.is_initialized():
            # Before there is a group: its functions have the group of that moment as a default, and keep it for ever.
            import torch.distributed.nn.functional  # noqa: F401

            # The address is that of the environment, which also knows schedulers that set no MASTER_ADDR.
            torchrun = environment.kind == "launcher"
            where = f"tcp://{environment.master_address}:{environment.master_port}"
            dist.init_process_group(
                self.process_group_backend or self.accelerator.backend,
                init_method="env://" if torchrun else where,
                rank=environment.rank,
                world_size=environment.world_size,
                timeout=self.timeout,
            )
            atexit.register(_disconnect)

    @property
    def rank(self) -> int:
        return self.environment.rank

    @property
    def world_size(self) -> int:
        return self.environment.world_size

    def align_buffers(self, module: nn.Module) -> None:
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer.data, src=0)

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        if self.world_size > 1:
            group = self._data_group if group is None else group
            mean = reduce_op in ("mean", "avg")
            operations = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
            dist.all_reduce(tensor, operations["sum" if mean else reduce_op], group=group)
            if mean:  # gloo knows none
                size = dist.get_world_size(group)
                tensor.div_(size, rounding_mode=None if tensor.is_floating_point() else "trunc")
        return tensor

    def all_gather(self, tensor: Tensor, sync_grads: bool = False) -> Tensor:
        if self.world_size == 1:
            return tensor[None]
        if sync_grads:  # as a sum in which every rank has its own place
            places = [tensor if rank == self.rank else torch.zeros_like(tensor) for rank in range(self.world_size)]
            return summed(torch.stack(places))
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.stack(parts)

    def all_agree(self, flag: bool) -> Callable[[], bool]:
        if self.world_size == 1:
            return super().all_agree(flag)
        answer = torch.tensor(int(flag))
        work = dist.all_reduce(answer, dist.ReduceOp.MIN, async_op=True)

        def agreed() -> bool:
            work.wait()
            return bool(answer)

        return agreed

    def broadcast(self, value: Any, src: int = 0) -> Any:
        if self.world_size == 1:
            return value
        from everstep.checkpoint.format import from_json, to_json

        tree, tensors = to_json(value if self.rank == src else None, "value")
        kinds = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()]
        tree, kinds = json.loads(self._text(json.dumps([tree, kinds]), src))
        whole = {}
        for name, shape, dtype in kinds:
            kind = getattr(torch, dtype.removeprefix("torch."))
            sent = tensors[name].to(self.root_device).contiguous() if self.rank == src else None
            whole[name] = torch.empty(shape, dtype=kind, device=self.root_device) if sent is None else sent
            dist.broadcast(whole[name], src=src)
        return value if self.rank == src else from_json(tree, whole)

    def _text(self, text: str, src: int) -> str:
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor(len(data))
        dist.broadcast(size, src=src)
        if self.rank != src:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, src=src)
        return bytes(data.tolist()).decode()

    def barrier(self, name: str | None = None) -> None:
        if self.world_size > 1:
            dist.barrier()


def summed(tensor: Tensor, group: Any = None) -> Tensor:
    """The sum over ranks; its backward sums as well. A collective."""
    result: Tensor = _Sum.apply(tensor, group)  # type: ignore[no-untyped-call]
    return result


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class Redirect(nn.Module):
    """What wraps a module prepares and finishes a step around `forward`; this one's is whatever function it is given.

    So the user's module keeps its class, its names and its own forward.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def _disconnect() -> None:
    """Gloo's threads end with the last one who holds the group. One that lives on, and lets go of a tensor while the
    interpreter is taken down, aborts the process: a rank that has done all its work would count as one that failed."""
    if dist.is_initialized():
        gc.collect()  # modules, their wrappers and hooks refer to each other in circles
        with contextlib.suppress(RuntimeError):  # a peer has gone already
            dist.destroy_process_group()
