"""The state of a fit as one dictionary: Lightning's keys, and under "everstep" what Lightning has no key for.

A run's recovery checkpoint holds it in shards, a `.ckpt` file whole; a resume takes it back from either.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everstep.checkpoint.ckpt import FORMAT, LIGHTNING_LAYOUT
from everstep.code_version import code_version
from everstep.errors import ConfigurationError
from everstep.hparams import dump_hparams
from everstep.module import LightningModule
from everstep.strategies import Strategy

if TYPE_CHECKING:
    from everstep.trainer.fit import Fit
    from everstep.trainer.trainer import Trainer

Tree = dict[str, Any]


def dump(trainer: "Trainer", fit: "Fit | None", *, weights_only: bool = False) -> Tree:
    """The dictionary. Equal on all ranks; called by all of them.

    Args:
        fit: the fit that the state is of; None: there was none, so there are only weights.
        weights_only: leave out what only a training needs.
    """
    module = trainer.lightning_module
    assert module is not None
    trainer.accelerator.flush()
    epoch, rounds, last = _place(trainer, fit)
    checkpoint: Tree = {
        "epoch": epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": LIGHTNING_LAYOUT,
        "state_dict": trainer.strategy.model_state(module),
        "loops": _loops(epoch, rounds, last, trainer.global_step, trainer.batches_that_stepped),
        "everstep": {"format": FORMAT, "version": _version(), "code": code_version()},
    }
    if not weights_only:
        checkpoint["callbacks"] = {
            callback.state_key: state for callback in trainer.callbacks if (state := callback.state_dict())
        }
        if fit is not None:
            checkpoint["optimizer_states"] = [optimizer.state_dict() for optimizer in trainer.optimizers]
            checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
            checkpoint["everstep"] |= {
                "fit": {
                    "first_step": fit.first_step,
                    "epoch": fit.place[0],
                    "position": fit.place[1],
                    "batches_that_stepped": trainer.batches_that_stepped,
                    "earlier_rounds": fit.earlier_rounds,
                    "passed": fit.stopping.passed,
                    "source": fit.source.state(),
                    "loaded_epoch": fit.loaded_epoch,
                    "validated": fit.validation.seen if fit.validation is not None else [],
                    "world_size": trainer.strategy.data_world_size,
                },
                "seed": fit.seed,
                "loggers": [logger.state_dict() for logger in trainer.logs.loggers],
                "metrics": {name: value.detach() for name, value in trainer.logs.callback_metrics.items()},
            }
            precision = trainer.precision_plugin.state_dict()
            if precision:
                checkpoint[type(trainer.precision_plugin).__qualname__] = precision
    dump_hparams(checkpoint, module, trainer.datamodule)
    if trainer.datamodule is not None:
        state = trainer.datamodule.state_dict()
        if state:
            checkpoint[type(trainer.datamodule).__qualname__] = state
    for callback in trainer.callbacks:
        callback.on_save_checkpoint(trainer, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def load(trainer: "Trainer", fit: "Fit", checkpoint: Tree) -> None:
    """What a training goes on with, beside what `load_module` has taken back: its place in the data, optimizers,
    schedulers and loggers.

    Raises:
        ConfigurationError: it is of other optimizers or other data, or of a later epoch than the fit will have.
    """
    if 0 <= trainer.max_epochs < checkpoint["epoch"]:
        raise ConfigurationError(
            f"the checkpoint is of epoch {checkpoint['epoch']}, and Trainer(max_epochs={trainer.max_epochs}) ends "
            "before it: raise max_epochs, or load the weights alone with load_from_checkpoint"
        )
    own = checkpoint["everstep"]["fit"] if "fit" in checkpoint.get("everstep", {}) else None
    if own is not None:
        fit.source_of(own.get("loaded_epoch", own["epoch"])).check(own["source"], own["world_size"])
        fit.seed = checkpoint["everstep"]["seed"]
        fit.first_step, fit.position = own["first_step"], own["position"]
        trainer.current_epoch = own["epoch"]
        trainer.batches_that_stepped, fit.earlier_rounds = own["batches_that_stepped"], own["earlier_rounds"]
        fit.stopping.resume(own["passed"])
        if fit.validation is not None:
            fit.validation.seen = list(own.get("validated", ()))
    else:
        fit.first_step, (epoch, batches) = 0, _lightnings_place(checkpoint)
        fit.position = fit.source_of(epoch).position_of(batches)
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        stepped = loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", checkpoint["global_step"])
        trainer.batches_that_stepped, fit.earlier_rounds = stepped, trainer.current_epoch * (fit.source.rounds or 0)
    trainer.global_step = checkpoint["global_step"]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    parts: tuple[tuple[str, list[Any], list[Tree], Callable[[Any, Tree], Any]], ...] = (
        ("optimizers", list(trainer.optimizers), checkpoint["optimizer_states"], trainer.strategy.load_optimizer_state),
        ("learning-rate schedulers", list(schedulers), checkpoint["lr_schedulers"], _load),
    )
    for what, owners, states, put in parts:
        if len(owners) != len(states):
            raise ConfigurationError(
                f"the checkpoint has {len(states)} {what}, configure_optimizers returned {len(owners)}: give the same "
                "ones, or load the weights alone with load_from_checkpoint"
            )
        for owner, state in zip(owners, states, strict=True):
            try:
                put(owner, state)
            except ValueError as why:  # of torch's optimizers: other groups, or as many parameters as the model had
                raise ConfigurationError(
                    f"the state of {type(owner).__name__} does not fit: {why}. Has the model changed, or what is "
                    "trained of it? Take the change back, or load the weights alone: "
                    "load_from_checkpoint(path, strict=False)"
                ) from why
    precision = checkpoint.get(type(trainer.precision_plugin).__qualname__)
    if precision is not None:
        trainer.precision_plugin.load_state_dict(precision)
    for logger, state in zip(trainer.logs.loggers, checkpoint.get("everstep", {}).get("loggers", ()), strict=False):
        logger.load_state_dict(state)
    trainer.logs.callback_metrics.update(checkpoint.get("everstep", {}).get("metrics", {}))


def _load(owner: Any, state: Tree) -> None:
    owner.load_state_dict(state)


def load_module(trainer: "Trainer", module: LightningModule, checkpoint: Tree) -> None:
    """What a fit has of it before its optimizers are made, and a completed one at all: weights, the datamodule,
    callbacks. The module has been told of it before its strategy set it up (on_load_checkpoint).

    Raises:
        ConfigurationError: it is of another model, or holds weights only.
    """
    if "optimizer_states" not in checkpoint:
        raise ConfigurationError(
            "the checkpoint holds weights only (of save_weights_only=True, or saved after a call with ddp_spawn, whose "
            "ranks had the rest): a fit cannot go on from it. Load it with "
            f"{type(module).__name__}.load_from_checkpoint(path) and train that from its beginning"
        )
    load_model(trainer, module, checkpoint)
    datamodule = trainer.datamodule
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:
        callback.on_load_checkpoint(trainer, module, checkpoint)
        state = states.get(callback.state_key, states.get(type(callback).__qualname__))
        if state is not None:
            callback.load_state_dict(state)


def load_model(trainer: "Trainer", module: LightningModule, checkpoint: Tree) -> None:
    """The weights alone, for an evaluation of them."""
    load_weights(module, checkpoint["state_dict"], module.strict_loading, trainer.strategy)


def load_weights(module: LightningModule, state: Tree, strict: bool = True, strategy: Strategy | None = None) -> None:
    """
    Args:
        strategy: that has set the module up.

    Raises:
        ConfigurationError: the checkpoint is of another model; names what is missing, unexpected or of another shape.
    """
    own = module.state_dict() if strategy is None else strategy.model_state(module)
    wrong = {
        "missing in the checkpoint": [name for name in own if name not in state] if strict else [],
        "unknown to the model": [name for name in state if name not in own] if strict else [],
        "of another shape": [
            f"{name} ({list(state[name].shape)} in the checkpoint, {list(own[name].shape)} in the model)"
            for name in own
            if name in state and getattr(own[name], "shape", None) != getattr(state[name], "shape", None)
        ],
    }
    if any(wrong.values()):
        said = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
        raise ConfigurationError(
            f"the checkpoint does not fit {type(module).__name__}. {said}. Is it another model's, or has the model "
            "changed? Take the change back, load what fits with strict=False (or strict_loading = False in the "
            "module), or begin anew"
        )
    if strategy is None:
        module.load_state_dict(state, strict=strict)
    else:
        strategy.load_model_state(module, state, strict)


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# Where a fit stands, in Lightning's words. It saves inside of an epoch's end, we after it: what is epoch 3, position 0
# here is epoch 2 with all of its batches done there.


def _place(trainer: "Trainer", fit: "Fit | None") -> tuple[int, int, bool]:
    """Epoch, its finished batches of a rank, and whether they are all."""
    epoch, position = fit.place if fit is not None else (trainer.current_epoch, 0)
    if fit is not None and position:
        return epoch, fit.source.rounds_of(position), False
    if epoch == 0:
        return 0, 0, False
    rounds = trainer.num_training_batches
    return epoch - 1, int(rounds) if math.isfinite(rounds) else 0, True


def _lightnings_place(checkpoint: Tree) -> tuple[int, int]:
    """Of a file that Lightning wrote: the present epoch, and its finished batches."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    batches = loop.get("epoch_loop.batch_progress", {})
    done = batches.get("current", {}).get("processed", 0)
    completed = loop.get("epoch_progress", {}).get("current", {}).get("completed", checkpoint["epoch"])
    if batches.get("is_last_batch") or not done:
        return max(checkpoint["epoch"] + bool(done), completed), 0
    return checkpoint["epoch"], done


def _loops(epoch: int, rounds: int, last: bool, steps: int, batches_that_stepped: int) -> Tree:
    def progress(count: int, *more: str) -> Tree:
        numbers = dict.fromkeys(("ready", "completed", *more), count)
        return {"total": dict(numbers), "current": numbers}

    batch = ("started", "processed")
    nothing = {"state_dict": {}, "batch_progress": progress(0, *batch)}
    epochs = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch + last, "completed": epoch}
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_progress": {"total": dict(epochs), "current": epochs},
            "epoch_loop.state_dict": {"_batches_that_stepped": batches_that_stepped},
            "epoch_loop.batch_progress": {**progress(rounds, *batch), "is_last_batch": last},
            "epoch_loop.scheduler_progress": progress(steps),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {"step": progress(steps), "zero_grad": progress(steps, "started")}
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": progress(0),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": {**progress(0, *batch), "is_last_batch": False},
        },
        "validate_loop": {**nothing, "batch_progress": {**progress(0, *batch), "is_last_batch": False}},
        "test_loop": {**nothing, "batch_progress": {**progress(0, *batch), "is_last_batch": False}},
        "predict_loop": nothing,
    }


def _version() -> str:
    from everstep import __version__

    return __version__
