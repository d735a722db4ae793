"""The hooks, in the order in which they are called. This list is the documentation of the loop.

A hook is a method of callbacks, with (trainer, module) before the arguments below, and of the module, with the
arguments alone; callbacks come first, in their order. A table of those that are overridden is made once per Trainer
call. (m): of the module only, (c): of callbacks only, (d): of the datamodule too, (t): of the datamodule where it
overrides it, else of the module.

    fit                              validate, test, predict (<stage>)     arguments
    configure_callbacks (m)          configure_callbacks (m)
    prepare_data (m, d)              prepare_data (m, d)                   on one process of each node
    setup (d first)                  setup (d first)                       stage
    configure_model (m)              configure_model (m)
    on_load_checkpoint               on_load_checkpoint (m)                a checkpoint, where one is loaded: see below
    configure_optimizers (m)
    on_fit_start
    on_sanity_check_start (c)
      val_dataloader (t), then as a validation below
    on_sanity_check_end (c)
    train_dataloader (t)             <stage>_dataloader (t)
                                     on_<stage>_model_eval (m)
    on_train_start                   on_<stage>_start
    on_train_epoch_start             on_<stage>_epoch_start
      on_before_batch_transfer (t)     on_before_batch_transfer (t)        batch, dataloader_idx
      transfer_batch_to_device (t)     transfer_batch_to_device (t)        batch, device, dataloader_idx
      on_after_batch_transfer (t)      on_after_batch_transfer (t)         batch, dataloader_idx
      on_train_batch_start             on_<stage>_batch_start              batch, batch_idx (, dataloader_idx)
      optimizer_step (m)                                                   epoch, batch_idx, optimizer, closure of:
        training_step (m)              <stage>_step (m)                    batch, batch_idx (, dataloader_idx)
        on_before_zero_grad                                                optimizer
        optimizer_zero_grad (m)                                            epoch, batch_idx, optimizer
        on_before_backward                                                 loss
        backward (m)                                                       loss
        on_after_backward
        on_before_optimizer_step                                           optimizer
        configure_gradient_clipping (m)                                    optimizer, value, algorithm
      lr_scheduler_step (m)                                                scheduler, metric
      on_train_batch_end               on_<stage>_batch_end                outputs, batch, batch_idx (, dataloader_idx)
      on_validation_model_zero_grad (m), a validation, where one is due
    on_train_epoch_end               on_<stage>_epoch_end
    on_train_end                     on_<stage>_end
                                     on_<stage>_model_train (m)
    on_fit_end
    teardown (d first)               teardown (d first)                    stage
    on_exception (d too)             on_exception (d too)                  exception

Callbacks that `monitor` metrics hear on_train_epoch_end after the module. on_train_batch_start may return -1: the rest
of the epoch is left out. Beside these: on_save_checkpoint (a dict of tensors and JSON values), the
callbacks' state_dict.

A checkpoint that is loaded is given to the module before its weights are: it may change itself to fit them. Weights,
then the datamodule's and the callbacks' state come back before configure_optimizers; optimizers, schedulers and the
place in the data after on_fit_start.

Where this differs from Lightning 2.6 (a test compares the sequences): what nobody overrides is not called, its work is
done by the loop itself; on a resume neither the sanity check nor a begun epoch's on_train_epoch_start is repeated.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from everstep.callbacks.base import Callback
from everstep.data import LightningDataModule
from everstep.errors import ConfigurationError
from everstep.module import LightningModule
from everstep.profilers import Profiler

Listeners = tuple[Callable[..., Any], ...]

STAGES = ("validation", "test", "predict")
_EVALUATION = tuple(
    f"on_{stage}_{moment}"
    for stage in STAGES
    for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
)
_OF_A_LOADER = tuple(name for name in _EVALUATION if "_batch_" in name)
_OF_CALLBACKS = ("on_sanity_check_start", "on_sanity_check_end")
_OF_THE_MODULE = (
    "on_validation_model_zero_grad",
    *(f"on_{stage}_model_{mode}" for stage in STAGES for mode in ("eval", "train")),
)
_OF_DATA_TOO = ("setup", "teardown", "on_exception")
HOOKS = (
    "setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end",
    "on_train_start", "on_train_epoch_start", "on_train_batch_start",
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end",
    *_EVALUATION, *_OF_THE_MODULE, "teardown", "on_exception",
)  # fmt: skip
#: Not in the table: the loop calls the module's own.
_OF_THE_LOOP = ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step",
                "on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device")  # fmt: skip
MONITORS = "on_train_epoch_end of callbacks that monitor metrics"
#: What the module's steps may be given. A step takes the first, the first two …
_STEPS = {
    "training_step": ("batch", "batch_idx"),
    **{f"{stage}_step": ("batch", "batch_idx", "dataloader_idx") for stage in STAGES},
}

#: Hooks of older Lightnings that are gone in 2.6, and what took their place. Defining one would be a silent no-op.
GONE = {
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
    "training_step_end": "on_train_batch_end, or training_step itself",
    "validation_step_end": "on_validation_batch_end, or validation_step itself",
    "test_step_end": "on_test_batch_end, or test_step itself",
    "configure_sharded_model": "configure_model",
    "on_configure_sharded_model": "setup",
    "on_init_start": "setup",
    "on_init_end": "setup",
    "on_keyboard_interrupt": "on_exception",
    "tbptt_split_batch": "training_step, with self.automatic_optimization = False",
    "get_progress_bar_dict": "self.log, with prog_bar=True",
    "on_batch_start": "on_train_batch_start",
    "on_batch_end": "on_train_batch_end",
    "on_epoch_start": "on_train_epoch_start",
    "on_epoch_end": "on_train_epoch_end",
    "on_pretrain_routine_start": "on_fit_start",
    "on_pretrain_routine_end": "on_fit_start",
}


class Hooks:
    """One tuple of bound methods per hook, of those that are overridden."""

    def __init__(self, trainer: Any, module: LightningModule, callbacks: Iterable[Callback], datamodule: Any) -> None:
        """
        Raises:
            ConfigurationError: a hook is defined that is never called, or cannot be called with its arguments.
        """
        callbacks = tuple(callbacks)
        for owner in (module, *callbacks, *([datamodule] if datamodule is not None else [])):
            _refuse_gone(owner)
            _check_arguments(owner)
        _check_steps(module)
        profiler: Profiler = trainer.profiler
        timed = profiler.timed

        def method_of(owner: object, name: str) -> Callable[..., Any]:
            return _with_loader(owner, name) if name in _OF_A_LOADER else getattr(owner, name)

        def of_callback(callback: Callback, name: str) -> Callable[..., Any]:
            bound: Callable[..., Any] = partial(method_of(callback, name), trainer, module)
            return profiler.timed(f"[Callback]{callback.state_key}.{name}", bound)

        self._table: dict[str, Listeners] = {MONITORS: ()}
        for name in HOOKS:
            listening = [c for c in callbacks if _overridden(c, name, Callback)]
            heard = [] if name in _OF_THE_MODULE else [
                of_callback(c, name) for c in listening if not (c.monitors and name == "on_train_epoch_end")
            ]  # fmt: skip
            if name in _OF_DATA_TOO and datamodule is not None and _overridden(datamodule, name, LightningDataModule):
                data = timed(f"[LightningDataModule]{type(datamodule).__name__}.{name}", getattr(datamodule, name))
                heard.insert(0, data)
            if name not in _OF_CALLBACKS and _overridden(module, name, LightningModule):
                heard.append(timed(f"[LightningModule]{type(module).__name__}.{name}", method_of(module, name)))
            if name == "on_train_epoch_end":
                self._table[MONITORS] = tuple(of_callback(c, name) for c in listening if c.monitors)
            self._table[name] = tuple(heard)

    def __getitem__(self, name: str) -> Listeners:
        return self._table[name]

    def call(self, name: str, *args: Any) -> None:
        for listener in self._table[name]:
            listener(*args)


def overridden(owner: LightningModule | LightningDataModule, name: str) -> bool:
    """Does the user's class (or the instance) define this method?"""
    return _overridden(owner, name, LightningModule if isinstance(owner, LightningModule) else LightningDataModule)


def _overridden(owner: object, name: str, base: type) -> bool:
    # Looked up on the class and in the instance's own dict: nn.Module's __getattr__ is of no use for either.
    return name in vars(owner) or getattr(type(owner), name, None) is not getattr(base, name, None)


def positional(function: Callable[..., Any]) -> float:
    """How many positional arguments a function takes; with *args: inf."""
    return _arguments(function, bound=True)[2]


def required(function: Callable[..., Any]) -> int:
    """How many positional arguments a function has to be given."""
    return _arguments(function, bound=True)[1]


def _with_loader(owner: object, name: str) -> Callable[..., Any]:
    """A hook of an evaluation's batches: with one loader it is not given its number, or a 0 if it has no default."""
    method: Callable[..., Any] = getattr(owner, name)
    taken = _taken(owner, name)
    if taken is None or taken[0] < _all_of(owner, name):
        return method

    def numbered(*arguments: Any) -> Any:
        return method(*arguments) if len(arguments) == _all_of(owner, name) else method(*arguments, 0)

    return numbered


def _taken(owner: object, name: str) -> tuple[int, float] | None:
    """How many arguments a hook has to be given, and how many it takes; None: a builtin that does not tell."""
    try:
        return _arguments(getattr(owner, name), bound=True)[1:]
    except (TypeError, ValueError):
        return None


def _all_of(owner: object, name: str) -> float:
    """How many arguments it may be given."""
    return _arguments(getattr(Callback if isinstance(owner, Callback) else LightningModule, name), bound=False)[2]


def refuse_unnumbered(owners: Iterable[object], stage: str, loaders: int) -> None:
    """
    Raises:
        ConfigurationError: there are several loaders, and a hook cannot be told which one a batch is of.
    """
    for owner in owners:
        for name in (f"on_{stage}_batch_start", f"on_{stage}_batch_end"):
            if _overridden(owner, name, Callback if isinstance(owner, Callback) else LightningModule):
                taken = _taken(owner, name)
                if taken is not None and taken[1] < _all_of(owner, name):
                    raise ConfigurationError(
                        f"there are {loaders} {stage} loaders: {type(owner).__name__}.{name} has to take "
                        "dataloader_idx as its last argument"
                    )


def _refuse_gone(owner: object) -> None:
    for name, instead in GONE.items():
        if name in vars(owner) or hasattr(type(owner), name):
            raise ConfigurationError(
                f"{type(owner).__name__} defines {name}, which is never called: Lightning 2 has removed it. Move its "
                f"work to {instead}"
            )


def _check_arguments(owner: object) -> None:
    """Before anything runs: a hook with the arguments of an earlier Lightning would fail in the middle of a fit."""
    base = next(kind for kind in (LightningModule, LightningDataModule, Callback) if isinstance(owner, kind))
    for name in (*HOOKS, *_OF_THE_LOOP):
        known = getattr(base, name, None)
        if known is None or not _overridden(owner, name, base):
            continue
        names, least, most = _arguments(known, bound=False)
        try:
            mine, mine_least, mine_most = _arguments(getattr(owner, name), bound=True)
        except (TypeError, ValueError):  # of a builtin that does not tell
            continue
        if mine_least > most or mine_most < least:
            raise ConfigurationError(
                f"{type(owner).__name__}.{name}({', '.join(mine)}) cannot be called: it is given "
                f"({', '.join(names)}). Lightning 2 has changed some hooks: take the others away"
            )


def _check_steps(module: LightningModule) -> None:
    for name, given in _STEPS.items():
        if not _overridden(module, name, LightningModule):
            continue
        step = getattr(module, name)
        names, least, most = _arguments(step, bound=True)
        if "dataloader_iter" in names:
            raise ConfigurationError(
                f"{type(module).__name__}.{name}({', '.join(names)}): Everstep fetches the batches, so that a resume "
                f"knows which have been seen: take ({', '.join(given)})"
            )
        if name == "training_step" and "optimizer_idx" in names[:least]:  # configure_optimizers will tell
            least -= 1
        if most < 1 or least > len(given):
            more = ". optimizer_idx is a third where there are several optimizers" if name == "training_step" else ""
            raise ConfigurationError(
                f"{type(module).__name__}.{name}({', '.join(names)}) cannot be called: it is given "
                f"({', '.join(given)}){more}"
            )


def _arguments(function: Callable[..., Any], *, bound: bool) -> tuple[list[str], int, float]:
    """The names of its positional arguments, how many it has to be given, and how many it takes."""
    found = list(inspect.signature(function).parameters.values())[0 if bound else 1 :]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [parameter for parameter in found if parameter.kind in kinds]
    more = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in found)
    least = sum(parameter.default is inspect.Parameter.empty for parameter in taken)
    return [parameter.name for parameter in taken], least, float("inf") if more else len(taken)
