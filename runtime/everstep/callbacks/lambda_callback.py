"""A callback of functions: `LambdaCallback(on_train_start=lambda trainer, module: …)`."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from everstep.callbacks.base import Callback


class LambdaCallback(Callback):
    """Args:
    functions: hook -> function; it gets what the hook gets, trainer and module first.
    """

    def __init__(self, **functions: Callable[..., Any]) -> None:
        hooks = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]
        for name, function in functions.items():
            if name not in hooks:
                near = get_close_matches(name, hooks, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"hooks are {', '.join(hooks)}"
                raise TypeError(f"LambdaCallback({name}=…): there is no such hook; {hint}")
            setattr(self, name, function)
