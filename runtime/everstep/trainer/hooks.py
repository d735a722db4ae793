"""The hooks, in the order in which they are called. This list is the documentation of the loop.

Each is a method of callbacks, with (trainer, module) before the arguments below, and of the module, with the
arguments alone; callbacks come first, in their order. A table of those that are overridden is made once per Trainer
call.

    fit                      validate, test, predict (<stage>)     arguments
    setup                    setup                                 stage
    on_fit_start
    on_sanity_check_start                                          (callbacks only)
      … on_validation_* …
    on_sanity_check_end                                            (callbacks only)
    on_train_start           on_<stage>_start
    on_train_epoch_start     on_<stage>_epoch_start
      on_train_batch_start     on_<stage>_batch_start              batch, batch_idx (, dataloader_idx)
      training_step            <stage>_step
      on_before_zero_grad                                          optimizer
      on_before_backward                                           loss
      on_after_backward
      on_before_optimizer_step                                     optimizer
      on_train_batch_end       on_<stage>_batch_end                outputs, batch, batch_idx (, dataloader_idx)
      on_validation_start … on_validation_end, where due
    on_train_epoch_end       on_<stage>_epoch_end
    on_train_end             on_<stage>_end
    on_fit_end
    teardown                 teardown                              stage
    on_exception             on_exception                          exception (callbacks only)

Beside them: on_save_checkpoint, on_load_checkpoint (a dict of tensors and JSON values), the callbacks' state_dict.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError
from everstep.module import LightningModule

Listeners = tuple[Callable[..., Any], ...]

_EVALUATION = tuple(
    f"on_{stage}_{moment}"
    for stage in ("validation", "test", "predict")
    for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
)
_CALLBACKS_ONLY = ("on_sanity_check_start", "on_sanity_check_end", "on_exception")
HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end",
    "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
    *_EVALUATION, "teardown", "on_exception",
)  # fmt: skip

#: Lightning's hooks that this version does not call. Overriding one is refused: it would be a silent no-op.
NOT_CALLED = frozenset({
    "optimizer_step", "optimizer_zero_grad", "backward", "lr_scheduler_step", "configure_gradient_clipping",
    "configure_model", "configure_sharded_model", "configure_callbacks", "manual_backward",
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
    "on_validation_model_eval", "on_validation_model_train", "on_validation_model_zero_grad",
    "on_test_model_eval", "on_test_model_train", "on_predict_model_eval", "on_predict_model_train",
    "training_epoch_end", "validation_epoch_end", "test_epoch_end", "training_step_end",
})  # fmt: skip


class Hooks:
    """One tuple of bound methods per hook, of those that are overridden."""

    def __init__(self, trainer: Any, module: LightningModule, callbacks: Iterable[Callback], datamodule: Any) -> None:
        """
        Raises:
            ConfigurationError: a hook is overridden that is never called.
        """
        callbacks = tuple(callbacks)
        for owner in (module, *callbacks, *([datamodule] if datamodule is not None else [])):
            _refuse_uncalled(owner)
        self._table: dict[str, Listeners] = {}
        for name in HOOKS:
            heard: list[Callable[..., Any]] = [
                partial(getattr(callback, name), trainer, module)
                for callback in callbacks
                if _overridden(callback, name, Callback)
            ]
            if name in ("setup", "teardown") and datamodule is not None:
                heard.append(getattr(datamodule, name))
            if name not in _CALLBACKS_ONLY and _overridden(module, name, LightningModule):
                heard.append(getattr(module, name))
            self._table[name] = tuple(heard)

    def __getitem__(self, name: str) -> Listeners:
        return self._table[name]

    def call(self, name: str, *args: Any) -> None:
        for listener in self._table[name]:
            listener(*args)


def overridden(module: LightningModule, name: str) -> bool:
    """Does the user's class (or the instance) define this method?"""
    return _overridden(module, name, LightningModule)


def _overridden(owner: object, name: str, base: type) -> bool:
    # Looked up on the class and in the instance's own dict: nn.Module's __getattr__ is of no use for either.
    return name in vars(owner) or getattr(type(owner), name, None) is not getattr(base, name, None)


def _refuse_uncalled(owner: object) -> None:
    for name in sorted(NOT_CALLED):
        if name in vars(owner) or hasattr(type(owner), name):
            raise ConfigurationError(
                f"{type(owner).__name__} overrides {name}, which this version of Everstep never calls: "
                "remove it, or do its work in a hook that is called (everstep/trainer/hooks.py lists them)"
            )
