"""What a Trainer call is besides its loop, whichever verb it is: set up, loaded, torn down; or only looked up."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from everstep.callbacks import Callback, conflicts
from everstep.errors import Stopped
from everstep.loggers.hparams import tell_loggers
from everstep.trainer.ckpt_path import CkptPath
from everstep.trainer.ckpt_path import load as load_ckpt
from everstep.trainer.hooks import Hooks
from everstep.trainer.run import Begun
from everstep.trainer.state import load_model, load_module
from everstep.trainer.states import TrainerFn, TrainerStatus

if TYPE_CHECKING:
    from everstep.data import LightningDataModule
    from everstep.module import LightningModule
    from everstep.trainer.trainer import Trainer

Verb = Literal["fit", "validate", "test", "predict"]


def call(
    trainer: "Trainer", verb: Verb, model: "LightningModule", datamodule: "LightningDataModule | None",
    work: Callable[[Hooks, Begun], Any], ckpt_path: CkptPath | None,
) -> Any:  # fmt: skip
    """
    Args:
        work: the loop. Left out where an earlier life of the script has completed this call: its result is returned.
    """
    run, strategy = trainer.run, trainer.strategy
    strategy.connect(run.environment)
    run.open(strategy)
    begun = run.begin(verb)
    trainer.resumed, trainer.ckpt_path = begun.record is not None or begun.restored is not None, None
    _attach(trainer, model, datamodule)
    _agree_on_loggers(trainer, begun)
    hooks = Hooks(trainer, model, trainer.callbacks, datamodule)
    trainer.state.begin(TrainerFn(verb))
    trainer.profiler.setup(verb, trainer.log_dir)
    try:
        _prepare_data(trainer, model, datamodule)
        hooks.call("setup", TrainerFn(verb))
        with trainer.precision_plugin.init_context():
            model.configure_model()
        _load(trainer, verb, model, begun, ckpt_path)
        tell_loggers(trainer, model, datamodule)
        if begun.record is not None and verb != "predict":
            result = _recorded(trainer, verb, begun)
        else:
            result = work(hooks, begun)
        hooks.call("teardown", TrainerFn(verb))
    except BaseException as error:
        if not isinstance(error, Stopped):
            hooks.call("on_exception", error)
        trainer.keeper.abandon()
        _end(trainer, TrainerStatus.INTERRUPTED)
        raise
    finally:
        trainer.logs.mode = None
        trainer.profiler.teardown(verb)
    _end(trainer, TrainerStatus.FINISHED)
    return result


def _attach(trainer: "Trainer", model: "LightningModule", datamodule: "LightningDataModule | None") -> None:
    """Model, datamodule, callbacks and Trainer know each other."""
    trainer.strategy.model, trainer.logs.module, model.trainer = model, model, trainer
    trainer.logs.forget()
    trainer.datamodule = datamodule
    if datamodule is not None:
        datamodule.trainer = trainer
    found = model.configure_callbacks()
    own = [found] if isinstance(found, Callback) else list(found)
    if own:  # in the place of those of the same class
        trainer.callbacks = [c for c in trainer.callbacks if type(c) not in {type(mine) for mine in own}] + own
        conflicts.check(trainer.callbacks)
    for callback in trainer.callbacks:
        callback.log, callback.log_dict = model.log, model.log_dict


def _agree_on_loggers(trainer: "Trainer", begun: Begun) -> None:
    """They write where they did in an earlier life, and all ranks know where that is."""
    states: Any = ()
    if begun.record is not None:
        states = begun.record["loggers"]
    elif begun.restored is not None:
        states = begun.restored.shared["checkpoint"].get("everstep", {}).get("loggers", ())
    for logger, state in zip(trainer.logs.loggers, states, strict=False):
        logger.load_state_dict(state)
    if trainer.run.artifacts is not None:
        for folder, name in trainer.folders_of_loggers() if trainer.resumed else ():
            trainer.run.artifacts.fetch(folder, name)
    if trainer.world_size > 1:
        versions = trainer.strategy.broadcast([logger.version for logger in trainer.logs.loggers])
        for logger, version in zip(trainer.loggers, versions, strict=True):
            if not trainer.is_global_zero:
                logger.take_version(version)


def _prepare_data(trainer: "Trainer", model: "LightningModule", datamodule: "LightningDataModule | None") -> None:
    """On one process of each node, or of all; the others wait."""
    for owner in (datamodule, model):
        per_node = owner is None or owner.prepare_data_per_node
        if owner is not None and (trainer.local_rank if per_node else trainer.global_rank) == 0:
            owner.prepare_data()
    trainer.strategy.barrier()


def _load(trainer: "Trainer", verb: Verb, model: "LightningModule", begun: Begun, ckpt_path: CkptPath | None) -> None:
    """The model takes its place on the device, with the weights of the checkpoint where there is one. A restarted
    fit's own goes before `ckpt_path`."""
    chosen = begun.restored if verb == "fit" else None
    if ckpt_path is not None and not (verb == "fit" and trainer.resumed):
        chosen = load_ckpt(trainer, ckpt_path)
        if verb == "fit":
            begun.restored = chosen
    checkpoint = chosen.shared["checkpoint"] if chosen is not None else None
    if checkpoint is not None:
        model.on_load_checkpoint(checkpoint)  # it may change the module, of which nothing is made yet
    trainer.precision_plugin.convert_module(model)
    trainer.strategy.setup(model)
    if checkpoint is not None:
        (load_module if verb == "fit" else load_model)(trainer, model, checkpoint)


def _recorded(trainer: "Trainer", verb: Verb, begun: Begun) -> Any:
    """What a call that was completed before has left: metrics, and of a fit the final weights."""
    record = begun.record
    assert record is not None
    trainer.logs.callback_metrics.update({name: torch.tensor(value) for name, value in record["metrics"].items()})
    if verb == "fit":
        trainer.global_step, trainer.current_epoch = record["global_step"], record["current_epoch"]
        trainer.batches_that_stepped = record["batches_that_stepped"]
        if begun.restored is not None:
            trainer.keeper.fit, trainer.keeper.left = None, begun.restored.shared["checkpoint"]
    done = trainer.run.steps_before
    trainer.run.note(trainer.strategy, done, stage=verb, max_steps=done or None)
    return record["result"] if verb != "fit" else None


def _end(trainer: "Trainer", status: TrainerStatus) -> None:
    for logger in trainer.logs.loggers:
        logger.finalize("success" if status == TrainerStatus.FINISHED else "failed")
    trainer.store_artifacts()
    trainer.state.end(status)
