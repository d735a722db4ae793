"""The loop of `Trainer.fit`. `run` is the whole of it; the hooks in it are listed, in order, in hooks.py."""

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from everstep import rng
from everstep.compiled import compiled
from everstep.errors import NonFiniteLossError
from everstep.module import LightningModule
from everstep.sampling.loader import unshuffled
from everstep.sampling.schedule import Micro
from everstep.sampling.source import Source, training_source
from everstep.trainer.due import Due
from everstep.trainer.evaluate import Evaluation
from everstep.trainer.hooks import MONITORS, Hooks, overridden, positional
from everstep.trainer.loaders import Loaders, apart, combined
from everstep.trainer.optimization import Automatic, LightningOptimizer, Manual, for_listeners
from everstep.trainer.optimizers import configure
from everstep.trainer.run import Restored, Tree
from everstep.trainer.schedulers import Schedulers
from everstep.trainer.state import dump, load
from everstep.trainer.states import RunningStage
from everstep.trainer.stopping import Stopping
from everstep.trainer.transfer import Transfer
from everstep.trainer.waiting import watched
from everstep_protocol.messages import Stage

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer


class Fit:
    """One fit: its state is `trainer.global_step`, `trainer.current_epoch` and `position` in the epoch.

    Checkpoints are made at one place only, the boundary before a step: everything of the step before, validation and
    epoch end included, is done there. So a resume finds nothing half done.
    """

    def __init__(
        self, trainer: "Trainer", module: LightningModule, hooks: Hooks, loaders: Loaders, transfer: Transfer | None,
        restored: Restored | None, seed: int,
    ) -> None:  # fmt: skip
        self.trainer, self.module, self.hooks = trainer, module, hooks
        self.training_run, self.logs, self.strategy = trainer.run, trainer.logs, trainer.strategy
        self.loaders, self.transfer = loaders, transfer
        self.restored = restored
        self.seed = seed
        self.validation = self._validation()
        self.stopping = Stopping(trainer)
        self.schedulers = Schedulers(trainer, module)
        self.position = 0  # samples of this epoch that finished steps have consumed (a stream: batches)
        self.earlier_rounds = 0  # batches of a rank in the epochs before
        self.first_step = trainer.global_step
        self.seen = 0  # samples of all ranks in this fit, since this process began
        self.stream_state: Any = None
        self.saved_step = -1
        self.validated_step = -1
        self._scored: Any = None  # the metric's value at the latest save
        self.last_batch = False
        self.cut: tuple[int, int] | None = None  # epoch and position at which the fit ended inside of an epoch
        self._source: Source | None = None
        self.loaded_epoch = 0  # when the training loader was made
        self._watched = False  # for whether training waits for it

    def run(self) -> None:
        trainer, hooks = self.trainer, self.hooks
        self.logs.begin_epoch()
        trainer.optimizers, trainer.lr_scheduler_configs = configure(self.module, trainer)
        trainer.lightning_optimizers = [LightningOptimizer(optimizer, trainer) for optimizer in trainer.optimizers]
        hooks.call("on_fit_start")
        if self.restored is not None:
            self._load(self.restored)
        elif self.validation is not None and trainer.num_sanity_val_steps:
            self._sanity_check(self.validation)
        if trainer.limit_train_batches != 0 and not self.stopping.finished:
            self._train()
        self.strategy.unwrap()
        hooks.call("on_fit_end")

    def _train(self) -> None:
        trainer = self.trainer
        self.due = Due(trainer, self.source.rounds)
        way = Automatic if self.module.automatic_optimization else Manual
        self.optimization = trainer.optimization = way(trainer, self.module, self.hooks, self._bind_step())
        if self.validation is not None and self._epoch_validates:
            self.validation.make_loaders()
        self.training_run.stage(Stage.TRAINING)
        self.logs.mode = False
        self.hooks.call("on_train_start")
        trainer.keeper.begin(self)
        while not self.stopping.finished:
            self._epoch()
        trainer.keeper.end()
        self.logs.mode = None
        self.hooks.call("on_train_end")
        self.strategy.align_buffers(self.module)
        del self.optimization, trainer.optimization  # they hold the wrapped step

    def _epoch(self) -> None:
        trainer, hooks, logs = self.trainer, self.hooks, self.logs
        logs.mode = True
        batches = self._open_epoch() if self.position else None
        if self.restored is not None:
            self.training_run.set_rng(self.restored)  # after everything that draws numbers on the way here
            self.restored = None
        self._boundary()
        if batches is None:
            self._reload()
            hooks.call("on_train_epoch_start")
            self.source.accumulate(trainer.accumulate_grad_batches)  # a callback may have changed it
            batches = self._open_epoch()

        rounds = self._batches(batches)

        self.check_loss()
        logs.mode = False
        values = logs.reduce_epoch()
        hooks.call("on_train_epoch_end")
        values.update(logs.reduce_epoch())  # what the hooks have logged
        if hooks[MONITORS]:
            hooks.call(MONITORS)
            values.update(logs.reduce_epoch())
        logs.send_epoch(values, trainer.batches_that_stepped - 1, trainer.current_epoch)
        logs.end_epoch()
        self.schedulers.after_epoch()
        trainer.current_epoch += 1
        self.earlier_rounds += rounds
        self.position = 0

    def _batches(self, batches: Any) -> int:
        """The rest of an epoch. Returns the epoch's batches.

        Batches come in windows that share an optimizer step, and in rounds: what all ranks take together. What does
        not change within an epoch is looked up before it.
        """
        trainer, logs, source, schedulers = self.trainer, self.logs, self.source, self.schedulers
        schedules, run_batch = bool(schedulers), self.optimization.run
        batch_start, batch_end = self.hooks["on_train_batch_start"], self.hooks["on_train_batch_end"]
        module_answers = overridden(self.module, "on_train_batch_start")  # the last of them
        transfer, look_at_the_clock = self.transfer, self.stopping.look_at_the_clock
        boundary = self._boundary if self.training_run.listens or trainer.checkpoint_callbacks else None
        log_every = trainer.log_every_n_steps or math.inf
        part = 1.0 / source.shape.accumulation  # of a window: a batch's weight in it
        index = source.rounds_of(self.position)  # as the world in which the run began counts
        opens = True  # is this batch its window's first?

        for micro, batch in batches:
            closes = micro.closes_step  # is this batch its window's last?
            self.last_batch = micro.closes_epoch
            if transfer is not None:
                batch = transfer(batch, 0)
            logs.begin_step(micro.samples)
            answer = None
            for listener in batch_start:
                answer = listener(batch, index)
            if module_answers and answer == -1:  # it has had enough of this epoch
                schedulers.end_of_steps()
                return index

            outputs = run_batch(batch, index, opens, closes, micro.weight * part)

            opens = closes
            if closes:
                trainer.batches_that_stepped += 1
                if schedules:
                    schedulers.after_step(source.rounds_of(micro.round_stop), micro.closes_epoch)
            if batch_end:
                outputs = for_listeners(outputs, part)
                for listener in batch_end:
                    listener(outputs, batch, index)
            if closes and trainer.batches_that_stepped % log_every == 0:
                self._look()
            index += 1
            if look_at_the_clock is not None:
                look_at_the_clock()
            if micro.closes_round and self.validation is not None and self._validation_due(micro):
                self._validate(closes)
            if closes:
                if schedules:
                    schedulers.after_validation(source.rounds_of(micro.round_stop))
                self.seen += micro.round_stop - self.position
                self.position = micro.round_stop
                if micro.closes_epoch or self.stopping.finished:
                    self.cut = None if micro.closes_epoch else (trainer.current_epoch, self.position)
                    break
                if boundary is not None:
                    boundary()
        return index

    # Between two steps.

    def _boundary(self) -> None:
        """Everything up to here is done: tell the launcher, stop if that is agreed, save if that is due."""
        run, step = self.training_run, self.trainer.global_step - self.first_step
        if self.trainer.keeper.pending:
            self.trainer.keeper.flush()
        if run.seat is not None:
            run.enter(step + 1, self._save_and_tell)
        if run.wants_note:
            self._note()
        scored = run.metric and self.validated_step == step != self.saved_step
        if run.due(step, self.saved_step) or scored:
            self._save(False)
            self._note()

    def _save_and_tell(self, wait: bool) -> None:
        """The last act before a stop: nobody would say later which step is saved, or could not be."""
        self._note()
        self._save(wait)
        self._note()

    def _save(self, wait: bool) -> None:
        step = self.trainer.global_step - self.first_step
        if not self.training_run.keeps_checkpoints:
            return
        self.check_loss()  # what is saved is what a failure falls back to
        self.saved_step = step
        self.strategy.align_buffers(self.module)
        rank = {"means": self.logs.state_dict(), "stream": self.source.rank_state()}
        self.training_run.save(step, self.state(), rank, wait, self._score())
        self.trainer.keeper.in_background(self.trainer.store_artifacts)  # loggers have written all for their state

    def _score(self) -> float | None:
        """The value by which the run's best checkpoints are kept, if it was logged since the save before."""
        metric, known = self.training_run.metric, self.logs.callback_metrics
        value = known.get(metric)
        if metric and value is None and self.validated_step >= 0 and self.trainer.is_global_zero:
            warnings.warn(
                f"spec.checkpoint.keepBest.metric is {metric!r}, which was not logged. Logged so far: "
                f"{', '.join(sorted(known)) or 'nothing'}",
                stacklevel=2,
            )
        before, self._scored = self._scored, value
        if value is None or value is before:
            return None
        score = float(value)
        return score if math.isfinite(score) else None

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and position from which the training would go on."""
        return self.cut or (self.trainer.current_epoch, self.position)

    def state(self) -> Tree:
        """Everything a resume needs that is the same on every rank."""
        return {"checkpoint": dump(self.trainer, self)}

    def _load(self, restored: Restored) -> None:
        load(self.trainer, self, restored.shared["checkpoint"])
        self._count_batches()
        self.saved_step = self.trainer.global_step - self.first_step
        self._scored = self.logs.callback_metrics.get(self.training_run.metric)
        if restored.rank is not None:
            self.logs.load_state_dict(restored.rank.get("means", {}))  # none at the end of a completed fit
            self.stream_state = restored.rank.get("stream")
        elif self.position and restored.info.world_size != self.trainer.world_size:
            self.trainer.print(
                f"everstep: {restored.name} was saved by {restored.info.world_size} ranks in the middle of an epoch: "
                "what self.log means over this epoch is of its rest alone"
            )

    def _note(self) -> None:
        trainer = self.trainer
        self.training_run.note(
            self.strategy,
            self.training_run.steps_before + trainer.global_step - self.first_step,
            stage="fit",
            epoch=trainer.current_epoch,
            max_steps=self._max_steps(),
            samples=self.seen,
            metrics=self.logs.sent,
            learning_rate=self._learning_rate(),
        )

    def _learning_rate(self) -> float | None:
        """Of the first parameter group; None: it is on a device, where looking at it would wait."""
        rate = self.trainer.optimizers[0].param_groups[0].get("lr")
        return rate if isinstance(rate, float | int) else None

    def _max_steps(self) -> int | None:
        """Optimizer steps when all is done, of the run."""
        total = self.stepping_batches
        return self.training_run.steps_before + int(total) - self.first_step if total != math.inf else None

    # Data.

    @property
    def source(self) -> Source:
        if self._source is None:
            trainer = self.trainer
            loader = combined(self.loaders.need("train_dataloader"), "max_size_cycle", "training")
            if trainer.overfit_batches:
                loader = unshuffled(loader)
            source: Source = training_source(
                loader, self.strategy, trainer.accumulate_grad_batches, trainer.limit_train_batches, self.seed,
                divide=trainer.use_distributed_sampler, same_every_epoch=bool(trainer.overfit_batches),
                resumable=not trainer.barebones,
            )  # fmt: skip
            self._source, self.loaded_epoch, trainer.train_dataloader = source, trainer.current_epoch, apart(loader)
            self._count_batches()
        return self._source

    def _count_batches(self) -> None:
        """As the world in which the run began counts."""
        rounds = self.source.rounds
        self.trainer.num_training_batches = rounds if rounds is not None else math.inf

    def source_of(self, epoch: int) -> Source:
        """The loader as it is asked for in `epoch`, which is the present one then: it may depend on that."""
        if self.loaded_epoch != epoch:
            self._source = None
        self.trainer.current_epoch = epoch
        return self.source

    @property
    def stepping_batches(self) -> int | float:
        """Optimizer steps that this fit will have taken, as far as it can tell; inf: it cannot."""
        trainer, rounds = self.trainer, self.source.rounds
        ends: list[float] = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs >= 0 and rounds is not None:
            ends.append(trainer.max_epochs * -(-rounds // self.source.shape.accumulation))
        return min(ends) if ends else math.inf

    def _open_epoch(self) -> Any:
        state, self.stream_state = self.stream_state if self.position else None, None
        trainer = self.trainer
        batches = self.source.epoch(trainer.current_epoch, self.position, state)
        if not self._watched and not trainer.barebones and trainer.is_global_zero:
            self._watched = True  # the first epoch tells enough
            batches = watched(batches, trainer.train_dataloader, trainer.num_devices)
        return trainer.profiler.timed_iterator("train_dataloader_next", batches)

    def each_batch(self, step: Callable[..., Any]) -> None:
        """One more pass over the training data, outside of all steps."""
        step, transfer = with_index(step), self.transfer
        for index, (_, batch) in enumerate(self.source.epoch(self.trainer.current_epoch, 0)):
            step(batch if transfer is None else transfer(batch, 0), index)

    def _reload(self) -> None:
        """What may change from one epoch to the next: the loader, and how many batches make a step."""
        trainer, every = self.trainer, self.trainer.reload_dataloaders_every_n_epochs
        if every and trainer.current_epoch - self.loaded_epoch >= every:
            before, self._source = self.source, None
            self.source.follow(before)
            self._count_batches()
            self.due = Due(trainer, self.source.rounds)
            if self.validation is not None:
                self.validation.reload()

    # Parts of a step.

    def _bind_step(self) -> Callable[..., Any]:
        trainer = self.trainer
        step = compiled(self.module, with_index(self.module.training_step))
        step = self.strategy.wrap(self.module, trainer.precision_plugin.wrap(step))
        return trainer.profiler.timed("training_step", step)

    def _look(self) -> None:
        """A log step: values are fetched now, if anybody wants them."""
        self.logs.send_step(self.trainer.batches_that_stepped - 1, self.trainer.current_epoch)
        if self.trainer.loggers or self.training_run.seat is not None:
            self.check_loss()

    def check_loss(self) -> None:
        """Looks at a value on the device, so it is for moments at which others are fetched or saved too.

        Raises:
            NonFiniteLossError: this rank's latest loss is NaN or infinite.
        """
        if self.optimization.loss is None:
            return
        loss, scale = self.optimization.loss
        value = float(loss.detach()) / (scale or 1.0)
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} at step {self.trainer.global_step} (epoch {self.trainer.current_epoch}): lower "
                "the learning rate, clip gradients (gradient_clip_val), or look at the data of this step"
            )
        self.training_run.saw_loss(value)

    # Validation inside the fit.

    def _validation(self) -> Evaluation | None:
        """None: there is nothing to validate with."""
        trainer, module = self.trainer, self.module
        has_step, has_loader = overridden(module, "validation_step"), self.loaders.defined("val_dataloader")
        if trainer.limit_val_batches == 0:
            return None
        who = type(module).__name__
        if has_step and not has_loader:
            warnings.warn(f"{who} has a validation_step, but there is no val_dataloader: no validation", stacklevel=2)
        if has_loader and not has_step:
            warnings.warn(f"there is a val_dataloader, but {who} has no validation_step: no validation", stacklevel=2)
        if not (has_step and has_loader):
            return None
        return Evaluation(trainer, module, self.hooks, self.loaders, self.transfer, "validation", self.seed)

    def _validation_due(self, micro: Micro) -> bool:
        trainer = self.trainer
        if trainer.should_stop and self.stopping.may_stop and self._epoch_validates:
            return True
        return self.due.after(self.source.rounds_of(micro.round_stop), self.earlier_rounds, micro.closes_epoch)

    @property
    def _epoch_validates(self) -> bool:
        every = self.trainer.check_val_every_n_epoch
        return every is None or (self.trainer.current_epoch + 1) % every == 0

    def _sanity_check(self, validation: Evaluation) -> None:
        """A few batches of validation, to find errors early. Leaves no trace: no metrics, no random numbers drawn."""
        before = rng.get_state()
        self.trainer.state.stage = RunningStage.SANITY_CHECKING
        self.hooks.call("on_sanity_check_start")
        validation.run(self.trainer.num_sanity_val_steps)
        self.hooks.call("on_sanity_check_end")
        self.trainer.state.stage = RunningStage.TRAINING
        self.logs.forget()
        rng.set_state(before)

    def _validate(self, between_steps: bool) -> None:
        assert self.validation is not None
        if between_steps:
            if self.hooks["on_validation_model_zero_grad"]:
                self.hooks.call("on_validation_model_zero_grad")
            else:
                self.module.zero_grad()  # memory for the validation
        self.strategy.align_buffers(self.module)
        self.training_run.stage(Stage.EVALUATING)
        self.trainer.state.stage = RunningStage.VALIDATING
        self.validation.run()
        self.trainer.state.stage = RunningStage.TRAINING
        self.validated_step = self.trainer.global_step - self.first_step
        self.training_run.stage(Stage.TRAINING)
        self.logs.mode = True


def with_index(step: Callable[..., Any]) -> Callable[..., Any]:
    """training_step as (batch, batch_idx) -> anything, also if it only takes the batch."""
    return step if positional(step) > 1 else lambda batch, index: step(batch)
