"""An optimizer whose step goes another way than its own: through a precision, hooks, a counter."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class WrappedOptimizer:
    """Everything but `step` is the optimizer's own; isinstance agrees, so that schedulers take it for one."""

    def __init__(self, optimizer: Optimizer, step: Callable[..., Any]) -> None:
        """`step`: (optimizer, closure) -> anything."""
        self._optimizer, self._step = optimizer, step

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """One optimizer step. `closure`: computes loss and gradients."""
        return self._step(self._optimizer, closure, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def __reduce__(self) -> Any:
        """Copied or pickled, as a part of something, it is the optimizer: what steps it belongs to this process."""
        return _itself, (self._optimizer,)

    def __repr__(self) -> str:
        return repr(self._optimizer)


def _itself(optimizer: Optimizer) -> Optimizer:
    return optimizer
