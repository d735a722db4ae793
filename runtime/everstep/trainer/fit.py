"""The loop of `Trainer.fit`. `run` is the whole of it; the hooks in it are listed, in order, in hooks.py."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everstep.errors import ConfigurationError, NonFiniteLossError
from everstep.module import LightningModule
from everstep.sampling.schedule import Micro
from everstep.sampling.source import training_source
from everstep.trainer.evaluate import Evaluation, takes_index
from everstep.trainer.hooks import Hooks
from everstep.trainer.optimizers import configure
from everstep.trainer.run import Restored, Tree
from everstep.trainer.state import dump, load
from everstep_protocol.messages import Stage

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer


class Fit:
    """One fit: its state is `trainer.global_step`, `trainer.current_epoch` and `position` in the epoch.

    Checkpoints are made at one place only, the boundary before a step: everything of the step before, validation and
    epoch end included, is done there. So a resume finds nothing half done.
    """

    def __init__(
        self, trainer: "Trainer", module: LightningModule, hooks: Hooks, loader: Any, validation: Evaluation | None,
        restored: Restored | None, seed: int,
    ) -> None:  # fmt: skip
        self.trainer, self.module, self.hooks = trainer, module, hooks
        self.run_, self.logs, self.strategy = trainer.run, trainer.logs, trainer.strategy
        self.validation = validation
        self.restored = restored
        self.seed = seed
        self.source = training_source(
            loader, self.strategy, trainer.accumulate_grad_batches, trainer.limit_train_batches, seed
        )
        self.position = 0  # samples of this epoch that finished steps have consumed (a stream: batches)
        self.first_step = trainer.global_step
        self.seen = 0  # samples of all ranks in this fit, since this process began
        self._stream_state: Any = None
        self._saved_step = -1
        self._loss: tuple[Tensor, float] | None = None  # the latest, and by what it was multiplied

    def run(self) -> None:
        trainer, hooks = self.trainer, self.hooks
        trainer.optimizers, trainer.lr_scheduler_configs = configure(self.module)
        hooks.call("on_fit_start")
        if self.restored is not None:
            self._load(self.restored)
        trainer.num_training_batches = self.source.rounds if self.source.rounds is not None else math.inf
        self._validate_every = self._validation_interval()
        self.module.train()
        self.step = self._bind_step()
        if self.restored is None and self.validation is not None and trainer.num_sanity_val_steps:
            self._sanity_check()
        self.run_.stage(Stage.TRAINING)
        hooks.call("on_train_start")
        while not self._finished():
            self._epoch()
        hooks.call("on_train_end")
        self.strategy.align_buffers(self.module)
        self.strategy.unwrap()
        hooks.call("on_fit_end")

    def _epoch(self) -> None:
        trainer, hooks, logs = self.trainer, self.hooks, self.logs
        logs.mode = True
        batches = self._open_epoch() if self.position else None
        if self.restored is not None:
            self.run_.set_rng(self.restored)  # after everything that draws numbers on the way here
            self.restored = None
        elif not self.position:
            logs.begin_epoch()
        self._boundary()
        if batches is None:
            hooks.call("on_train_epoch_start")
            batches = self._open_epoch()

        self._batches(batches)

        logs.mode = False
        values = logs.reduce_epoch()
        hooks.call("on_train_epoch_end")
        values.update(logs.reduce_epoch())  # what the hooks have logged
        logs.send_epoch(values, trainer.global_step - 1, trainer.current_epoch)
        self._step_schedulers("epoch", trainer.current_epoch + 1, plateau=True)
        trainer.current_epoch += 1
        self.position = 0

    def _open_epoch(self) -> Any:
        state, self._stream_state = self._stream_state if self.position else None, None
        return self.source.epoch(self.trainer.current_epoch, self.position, state)

    def _batches(self, batches: Any) -> None:
        """The rest of an epoch: forward and backward for each micro-batch, an optimizer step where a window closes."""
        trainer, logs, step, source = self.trainer, self.logs, self.step, self.source
        hooks = self.hooks
        batch_start, batch_end = hooks["on_train_batch_start"], hooks["on_train_batch_end"]
        before_zero_grad, before_step = hooks["on_before_zero_grad"], hooks["on_before_optimizer_step"]
        before_backward, after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
        (optimizer,) = trainer.optimizers
        backward, optimizer_step = trainer.precision.backward, trainer.precision.step
        synchronise, shared = self.strategy.synchronise_gradients, True
        clip = trainer.gradient_clip_val
        by_step = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
        part = 1.0 / source.shape.accumulation
        index = self._micros_before()
        opens = True

        for micro, batch in batches:
            samples = logs.samples = source.samples(micro, batch)
            logs.begin_step(samples)
            for listener in batch_start:
                listener(batch, index)
            if shared is not micro.closes_step:
                shared = micro.closes_step
                synchronise(shared)

            outputs = step(batch, index)
            loss = outputs if type(outputs) is Tensor else _loss_of(outputs, self.module)
            scale = micro.weight * part
            if scale != 1.0:
                loss = loss * scale
            if opens:
                for listener in before_zero_grad:
                    listener(optimizer)
                optimizer.zero_grad()
            for listener in before_backward:
                listener(loss)
            backward(loss)
            for listener in after_backward:
                listener()

            opens = micro.closes_step
            if opens:
                for listener in before_step:
                    listener(optimizer)
                if clip:
                    self._clip(optimizer, clip)
                optimizer_step(optimizer)
                trainer.global_step += 1
                if by_step:
                    self._step_schedulers("step", trainer.global_step, plateau=False)
            if micro.closes_round and self.source.is_last(micro):
                self._step_schedulers("epoch", trainer.current_epoch + 1, plateau=False)
            for listener in batch_end:
                listener(outputs, batch, index)
            self._loss = loss, scale
            if opens and trainer.global_step % trainer.log_every_n_steps == 0:
                self._look()
            index += 1
            if micro.closes_round and self._validation_due(micro):
                self._validate()
            if opens:
                if by_step:
                    self._step_schedulers("step", trainer.global_step, plateau=True)
                self.seen += micro.round_stop - self.position
                self.position = micro.round_stop
                if self.source.is_last(micro) or self._finished():
                    return
                self._boundary()

    # Between two steps.

    def _boundary(self) -> None:
        """Everything up to here is done: tell the launcher, stop if that is agreed, save if that is due."""
        run, step = self.run_, self.trainer.global_step - self.first_step
        if run.seat is not None:
            run.enter(step + 1, self._save_and_tell)
            self._note()
        if run.due(step) and step != self._saved_step:
            self._save(False)
            self._note(force=True)

    def _save_and_tell(self, wait: bool) -> None:
        """The last act before a stop: nobody would say later which step is saved, or could not be."""
        self._note(force=True)
        self._save(wait)
        self._note(force=True)

    def _save(self, wait: bool) -> None:
        trainer = self.trainer
        step = trainer.global_step - self.first_step
        if not self.run_.keeps_checkpoints:
            return
        self._check_loss()  # what is saved is what a failure falls back to
        self._saved_step = step
        self.strategy.align_buffers(self.module)
        rank = {"means": self.logs.state_dict(), "stream": self.source.rank_state()}
        self.run_.save(step, self.state(), rank, wait)

    def state(self) -> Tree:
        """Everything a resume needs that is the same on every rank."""
        return {"checkpoint": dump(self.trainer, self)}

    def _load(self, restored: Restored) -> None:
        trainer = self.trainer
        load(trainer, self, restored.shared["checkpoint"])
        self._saved_step = trainer.global_step - self.first_step
        if restored.rank is not None:
            self.logs.load_state_dict(restored.rank["means"])
            self._stream_state = restored.rank["stream"]

    def _note(self, force: bool = False) -> None:
        trainer = self.trainer
        self.run_.note(
            self.strategy,
            self.run_.steps_before + trainer.global_step - self.first_step,
            stage="fit",
            epoch=trainer.current_epoch,
            max_steps=self._max_steps(),
            samples=self.seen,
            metrics=self.logs.logged_metrics,
            force=force,
        )

    # Questions.

    def _finished(self) -> bool:
        trainer = self.trainer
        return (
            trainer.should_stop
            or 0 <= trainer.max_steps <= trainer.global_step
            or 0 <= trainer.max_epochs <= trainer.current_epoch
        )

    def _micros_before(self) -> int:
        """batch_idx of the next micro-batch: in the world that the run began with, the number of rounds so far."""
        return self.source.rounds_of(self.position)

    def _max_steps(self) -> int | None:
        """Optimizer steps when all is done, of the run."""
        trainer, rounds = self.trainer, self.source.rounds
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs >= 0 and rounds is not None:
            ends.append(trainer.max_epochs * -(-rounds // self.source.shape.accumulation))
        return self.run_.steps_before + min(ends) - self.first_step if ends else None

    def _validation_interval(self) -> int | None:
        """Rounds from one validation to the next; None: at the end of the epoch, or never."""
        every, rounds = self.trainer.val_check_interval, self.source.rounds
        if self.validation is None or (isinstance(every, float) and every == 1.0):
            return None
        if isinstance(every, float):
            if rounds is None:
                raise ConfigurationError(
                    f"val_check_interval={every} is a part of an epoch of unknown length: give a number of batches "
                    "(an int)"
                )
            return max(1, int(rounds * every))
        if rounds is not None and every > rounds:
            raise ConfigurationError(
                f"val_check_interval={every} is more than the {rounds} batches of an epoch: there would be no "
                "validation. Lower it, or give 1.0 for the end of the epoch"
            )
        return every

    def _validation_due(self, micro: Micro) -> bool:
        if self.validation is None or (self.trainer.current_epoch + 1) % self.trainer.check_val_every_n_epoch:
            return False
        if self._validate_every is None:
            return self.source.is_last(micro)
        rounds = -(-micro.round_stop // self.source.shape.round_size)
        return rounds % self._validate_every == 0

    # Parts of a step.

    def _bind_step(self) -> Callable[..., Any]:
        module = self.module
        function: Callable[..., Any] = module.training_step
        if not takes_index(function):
            only_batch = function

            def function(batch: Any, index: int) -> Any:
                return only_batch(batch)

        return self.strategy.wrap(module, self.trainer.precision.wrap(function))

    def _clip(self, optimizer: torch.optim.Optimizer, value: float) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.trainer.gradient_clip_algorithm == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, value)
        else:
            torch.nn.utils.clip_grad_value_(parameters, value)

    def _step_schedulers(self, interval: str, count: int, *, plateau: bool) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and config.plateau is plateau and count % config.frequency == 0:
                config.step(self.logs.callback_metrics)

    def _look(self) -> None:
        """A log step: values are fetched now, if anybody wants them."""
        self.logs.send_step(self.trainer.global_step - 1, self.trainer.current_epoch)
        if self.trainer.has_loggers or self.run_.seat is not None:
            self._check_loss()

    def _check_loss(self) -> None:
        """
        Raises:
            NonFiniteLossError: this rank's latest loss is NaN or infinite.
        """
        if self._loss is None:
            return
        loss, scale = self._loss
        value = float(loss.detach()) / (scale or 1.0)
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} at step {self.trainer.global_step} (epoch {self.trainer.current_epoch}): lower "
                "the learning rate, clip gradients (gradient_clip_val), or look at the data of this step"
            )
        self.run_.saw_loss(value)

    # Validation inside the fit.

    def _sanity_check(self) -> None:
        assert self.validation is not None
        self.trainer.sanity_checking = True
        self.hooks.call("on_sanity_check_start")
        self.validation.run(self.trainer.num_sanity_val_steps)
        self.hooks.call("on_sanity_check_end")
        self.trainer.sanity_checking = False
        for seen in (self.logs.callback_metrics, self.logs.logged_metrics, self.logs.progress_bar_metrics):
            seen.clear()

    def _validate(self) -> None:
        assert self.validation is not None
        self.strategy.align_buffers(self.module)
        self.run_.stage(Stage.EVALUATING)
        self.validation.run()
        self.run_.stage(Stage.TRAINING)
        self.logs.mode = True


def _loss_of(outputs: Any, module: LightningModule) -> Tensor:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if isinstance(loss, Tensor):
        return loss
    if outputs is None:
        what = "nothing: is a `return loss` missing?"
    elif isinstance(outputs, dict):
        what = f'a dict without a tensor under "loss" (it has {sorted(map(str, outputs))})'
    else:
        what = f"a {type(outputs).__name__}"
    raise ConfigurationError(
        f"{type(module).__name__}.training_step returned {what}. It has to return the loss, or a dict with the loss "
        'under "loss"'
    )
