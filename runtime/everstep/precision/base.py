"""32-true: what the module's parameters are in, nothing scaled, nothing cast."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Precision:
    """The seam between the loop and number formats. Another precision overrides two or three of these."""

    name = "32-true"
    #: Of the parameters that a sharding strategy gathers for forward and backward; None: as they are.
    compute_dtype: torch.dtype | None = None

    def convert_module(self, module: nn.Module) -> None:
        """Give the parameters their format, in place. Called before the strategy sets the module up."""

    def init_context(self) -> AbstractContextManager[Any]:
        """Around the code that makes layers (`configure_model`)."""
        return nullcontext()

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around one step's computation."""
        return nullcontext()

    def wrap(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A training, validation, test or predict step under this precision; called once per Trainer call."""
        if type(self).forward_context is Precision.forward_context:
            return step
        context = self.forward_context

        def under_this_precision(*args: Any, **kwargs: Any) -> Any:
            with context():
                return step(*args, **kwargs)

        return under_this_precision

    def convert_input(self, batch: Any) -> Any:
        """The batch with its floating-point tensors in this precision."""
        return batch

    def scale(self, loss: Tensor) -> Tensor:
        """The loss that is differentiated."""
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients of the loss; scaled, where the format needs it."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give gradients their true size, before anybody looks at or clips them."""

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """The optimizer's step; `closure` computes the loss again, for those that ask for it."""
        return optimizer.step() if closure is None else optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs; empty: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def __str__(self) -> str:
        return self.name


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast_floats(batch: Any, dtype: torch.dtype) -> Any:
    """Every floating-point tensor in nested dicts, lists, tuples (named ones too) as `dtype`; the rest as it is."""
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return type(batch)((key, cast_floats(value, dtype)) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(cast_floats(value, dtype) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(cast_floats(value, dtype) for value in batch)
    return batch
