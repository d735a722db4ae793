"""DistributedDataParallel: each rank has the whole model, gradients are averaged."""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from everstep.strategies.parallel import ParallelStrategy, Redirect
from everstep.strategies.sync_batchnorm import synchronise_batchnorm


class DDPStrategy(ParallelStrategy):
    """Args:
    bucket_cap_mb: gradients are averaged in buckets of at most this size, as soon as a bucket is complete. Default:
        25, and 1 for the first one, so that averaging begins while the backward still runs.
    find_unused_parameters: for models of which a step does not use every parameter; costs a walk of the graph.
    static_graph, gradient_as_bucket_view, and `more`: as in ParallelStrategy and torch's DistributedDataParallel.
    """

    name = "ddp"

    def __init__(
        self,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        *,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.options: dict[str, Any] = {
            "bucket_cap_mb": bucket_cap_mb,
            "find_unused_parameters": find_unused_parameters,
            "static_graph": static_graph,
            "gradient_as_bucket_view": gradient_as_bucket_view,
        }
        self._wrapped: list[DistributedDataParallel] = []  # one for each module
        self._quiet = False  # gradients of manual backwards stay here

    def setup(self, module: nn.Module, move_to_device: bool = True) -> None:
        super().setup(module, move_to_device)
        if self.sync_batchnorm and self.world_size > 1:
            synchronise_batchnorm(module)

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.world_size == 1 or not parameters:
            return step
        ddp = next((ddp for ddp in self._wrapped if ddp.module.module is module), None)
        if ddp is None:
            ddp = DistributedDataParallel(Redirect(module), **self.options)
            _settle_buckets(ddp, parameters)
            self._wrapped.append(ddp)

        def synchronised(*args: Any, **kwargs: Any) -> Any:
            return ddp(step, *args, **kwargs)

        return synchronised

    def synchronise_gradients(self, now: bool, module: nn.Module | None = None) -> None:
        for ddp in self._wrapped:
            if module is None or ddp.module.module is module:
                ddp.require_backward_grad_sync = now

    @contextlib.contextmanager
    def without_sync(self) -> Iterator[None]:
        self._quiet, before = True, self._quiet
        try:
            yield
        finally:
            self._quiet = before

    def share_gradients(self, module: nn.Module) -> None:
        """In one piece, of one size on all ranks: which parameters a step used may differ from rank to rank."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if self.world_size == 1 or self._quiet or not parameters:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = _flags(tuple(p.grad is not None for p in parameters), gradients[0].dtype, gradients[0].device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), used])
        dist.all_reduce(flat)
        flat /= self.world_size
        sizes = [*(gradient.numel() for gradient in gradients), len(parameters)]
        *parts, used = flat.split(sizes)  # type: ignore[no-untyped-call]
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        if any(parameter.grad is None for parameter in parameters):  # only then is the device waited for
            for parameter, gradient, share in zip(parameters, gradients, used.tolist(), strict=True):
                if share:
                    parameter.grad = gradient

    def unwrap(self) -> None:
        self._wrapped.clear()


@lru_cache(maxsize=64)
def _flags(flags: tuple[bool, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, as the way to a device is one of those that wait for it."""
    return torch.tensor(flags, dtype=dtype, device=device)


def _settle_buckets(ddp: DistributedDataParallel, parameters: list[nn.Parameter]) -> None:
    """One backward of zeros. DDP lays its buckets out anew after its first backward, in the order in which gradients
    came, and a ring sums in an order that depends on the layout: so the first real step of a resumed process would
    differ in the last bit from the same step of one that has run for a while. After this it is final in both."""

    def zeros() -> Tensor:
        # Later operations run first in the backward: gradients come last layer first, as in a real step.
        total = torch.zeros((), device=parameters[0].device)
        for parameter in parameters:
            total = total + parameter.flatten()[:1].sum() * 0.0
        return total

    ddp(zeros).backward()
    for parameter in parameters:
        parameter.grad = None
