"""ModelCheckpoint: `.ckpt` files of the best, the last, or every so often."""

import re
import time
from datetime import timedelta
from functools import partial
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from everstep import unknown_arguments
from everstep.callbacks.base import Callback
from everstep.checkpoint import ckpt
from everstep.errors import ConfigurationError
from everstep.loggers.base import Logger

if TYPE_CHECKING:
    import os

    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class Checkpoint(Callback):
    """The base of callbacks that keep checkpoints. With one of them, the Trainer adds no ModelCheckpoint of its own."""


class ModelCheckpoint(Checkpoint):
    """Keeps the `save_top_k` best files, by a logged metric, and the last.

    When a save is due is seen in the hooks; it is made between two steps, when everything of the step is done,
    validation and the end of the epoch included: so the metric is of these weights, and a fit resumes exactly from the
    file. A metric that was not logged since the last save is waited for. Writing goes on while training does; the files
    are there when `fit` returns.

    Args:
        dirpath: folder or URL (s3://…); default: `checkpoints` in the logger's log_dir; in a TrainingRun
            <checkpoint uri>/artifacts/<name>/<version>/checkpoints, where it outlives the pod.
        filename: a template, such as "{epoch:02d}-{val_loss:.2f}"; default "{epoch}-{step}".
        monitor: name of the logged metric; None: the latest counts as the best.
        save_last: also keep `last.ckpt`: True (a file of its own) or "link" (a symbolic link, local folders only).
        save_top_k: how many; -1: all, 0: none.
        save_on_exception: save when the fit ends by an exception.
        save_weights_only: weights and hyper-parameters; a fit cannot resume from it.
        mode: "min" or "max": which value of the metric is better.
        auto_insert_metric_name: the template {x} becomes x=<value>.
        every_n_train_steps, train_time_interval, every_n_epochs: one of them; default: every epoch.
        save_on_train_epoch_end: at the end of an epoch, not of a validation; default: if there is one validation an
            epoch, or none.
        enable_version_counter: give a name that is taken a -v1, -v2 …, instead of replacing the file.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1
    monitors = True

    def __init__(
        self,
        dirpath: "str | os.PathLike[str] | None" = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        **unknown: Any,
    ) -> None:
        unknown_arguments.refuse("ModelCheckpoint", ModelCheckpoint.__init__, unknown)
        if mode not in ("min", "max"):
            raise ConfigurationError(f'ModelCheckpoint(mode={mode!r}): give "min" or "max"')
        if not isinstance(save_top_k, int) or save_top_k < -1:
            raise ConfigurationError(
                f"ModelCheckpoint(save_top_k={save_top_k!r}): it has to be a whole number, at least -1, for all"
            )
        if filename is not None and not isinstance(filename, str):
            raise ConfigurationError(f"ModelCheckpoint(filename={filename!r}): give a text: '{{epoch}}-{{step}}'")
        try:
            list(Formatter().parse(filename or ""))
        except ValueError as error:
            raise ConfigurationError(
                f"ModelCheckpoint(filename={filename!r}): {error}: each name is in braces, as in '{{epoch}}-{{step}}'"
            ) from None
        if save_last not in (None, True, False, "link"):
            raise ConfigurationError(f'ModelCheckpoint(save_last={save_last!r}): give True, False or "link"')
        if monitor is None and save_top_k not in (-1, 0, 1):
            raise ConfigurationError(
                f"ModelCheckpoint(save_top_k={save_top_k}) without a monitor does not know which are the best: give "
                "the name of a logged metric, or save_top_k=-1 for all"
            )
        for name, value in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ConfigurationError(
                    f"ModelCheckpoint({name}={value!r}): it has to be a whole number, at least 0, for never"
                )
        if train_time_interval is not None and not isinstance(train_time_interval, timedelta):
            raise ConfigurationError(
                f"ModelCheckpoint(train_time_interval={train_time_interval!r}): it has to be a datetime.timedelta, "
                "such as timedelta(minutes=5)"
            )
        if bool(every_n_train_steps) + bool(every_n_epochs) + (train_time_interval is not None) > 1:
            raise ConfigurationError(
                "ModelCheckpoint takes one of every_n_train_steps, every_n_epochs and train_time_interval: make two of "
                "them, one for each"
            )
        by_default = every_n_train_steps is None and every_n_epochs is None and train_time_interval is None
        self._every_n_epochs = 1 if by_default else every_n_epochs or 0
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self.dirpath = None if dirpath is None else ckpt.as_place(dirpath)
        self.filename, self.monitor, self.verbose, self.mode = filename, monitor, verbose, mode
        self.save_last, self.save_top_k, self.save_on_exception = save_last, save_top_k, save_on_exception
        self.save_weights_only, self.auto_insert_metric_name = save_weights_only, auto_insert_metric_name
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter

        self.current_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}  # path -> score
        self.kth_best_model_path = ""
        self.kth_value = torch.tensor(float("inf") if mode == "min" else float("-inf"))
        self.best_model_score: Tensor | None = None
        self.best_model_path = ""
        self.last_model_path = ""
        self._saved_step = 0  # nothing to save before the first
        self.current_path = ""  # the latest file
        self._seen: Tensor | None = None  # the metric's value at the latest save
        self._waiting = False  # a save is due, but the metric is not there yet
        self._asked = False  # a save will be made between this step and the next
        self._next_time = 0.0
        self._looked_at = 0  # optimizer steps
        self._validated = False  # in this fit
        self._goes_on = False  # with what an earlier life of the script has begun
        self._own_folder = self.dirpath is None  # not the user's

    @property
    def state_key(self) -> str:
        kwargs = {
            "monitor": self.monitor,
            "mode": self.mode,
            "every_n_train_steps": self._every_n_train_steps,
            "every_n_epochs": self._every_n_epochs,
            "train_time_interval": self._train_time_interval,
        }
        return f"{type(self).__qualname__}{kwargs!r}"  # as Lightning's files have it

    @property
    def every_n_epochs(self) -> int:
        """Save after so many epochs; 0: not by epochs."""
        return self._every_n_epochs

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": dict(self.best_k_models),
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
            "saved_step": self._saved_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_model_path = state_dict["best_model_path"]
        self._saved_step = state_dict.get("saved_step", 0)
        if self._own_folder and self._goes_on:
            self.dirpath = state_dict["dirpath"]
        if state_dict.get("dirpath", self.dirpath) != self.dirpath:
            return  # another folder: its files are not counted, nor deleted, here
        self.best_model_score, self.current_score = state_dict["best_model_score"], state_dict["current_score"]
        self.best_k_models = dict(state_dict["best_k_models"])
        self.kth_best_model_path, self.kth_value = state_dict["kth_best_model_path"], state_dict["kth_value"]
        self.last_model_path = state_dict["last_model_path"]

    # When.

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        self._goes_on = trainer.resumed
        if self.dirpath is None:
            folder = trainer.artifacts("checkpoints") if trainer.is_global_zero else ""
            self.dirpath = trainer.strategy.broadcast(folder)
        if self.save_last == "link" and ckpt.is_url(self.dirpath):
            raise ConfigurationError(
                f'ModelCheckpoint(save_last="link"): {self.dirpath} has no links; give save_last=True for a copy'
            )

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._looked_at = trainer.global_step
        if self._train_time_interval is not None:
            self._next_time = time.monotonic() + self._train_time_interval.total_seconds()

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self._every_n_train_steps
        before, self._looked_at = self._looked_at, step
        if every and step // every > before // every:  # a batch may take several steps, with several optimizers
            self._ask(trainer)
        if self._train_time_interval is not None and step > before:
            # One clock decides for all ranks.
            early = time.monotonic() < self._next_time if trainer.is_global_zero else True
            if not trainer.strategy.all_true(early):
                self._next_time = time.monotonic() + self._train_time_interval.total_seconds()
                self._ask(trainer)

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if trainer.fitting and not trainer.sanity_checking:
            self._validated = True
            due = not self._at_epoch_end(trainer) and self._due_in(trainer.current_epoch)
            if due or self._waiting:
                self._ask(trainer)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        due = self._at_epoch_end(trainer) and self._due_in(trainer.current_epoch)
        if due or self._waiting:
            self._ask(trainer, epoch_over=True)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._waiting and self.monitor not in trainer.callback_metrics:
            self._missing(trainer)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        if self.save_on_exception and trainer.fitting and trainer.global_step != self._saved_step:
            metrics = self._metrics(trainer, trainer.current_epoch)
            place = self._free(trainer, metrics, self.filename)
            trainer.save_checkpoint(place, self.save_weights_only)
            self._saved_step, self.last_model_path = trainer.global_step, place
            trainer.print(f"everstep: {type(exception).__name__} was raised; saved {place}")

    def _due_in(self, epoch: int) -> bool:
        return self._every_n_epochs > 0 and (epoch + 1) % self._every_n_epochs == 0

    def _at_epoch_end(self, trainer: "Trainer") -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        once = trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0
        once = once and trainer.val_check_seconds is None
        return not trainer.validates or once

    def _ask(self, trainer: "Trainer", epoch_over: bool = False) -> None:
        if not self._asked and not trainer.fast_dev_run and trainer.global_step != self._saved_step:
            self._asked, epoch = True, trainer.current_epoch
            trainer.keeper.between_steps(lambda: self._save(trainer, epoch, epoch_over))

    # What.

    def _save(self, trainer: "Trainer", epoch: int, epoch_over: bool) -> None:
        """Between two steps; the step's epoch may have ended since."""
        self._asked = False
        metrics = self._metrics(trainer, epoch)
        if self.monitor is not None and self.save_top_k != 0:
            value = trainer.callback_metrics.get(self.monitor)
            self._waiting = value is None or value is self._seen
            if self._waiting:
                if value is None and epoch_over and (self._validated or not trainer.validates):
                    self._missing(trainer)
                return
            self._seen = value
            self._keep_best(trainer, metrics)
        elif self.save_top_k != 0:
            place = self._free(trainer, metrics, self.filename, self.best_model_path)
            previous, self.best_model_path = self.best_model_path, place
            self._write(trainer, place)
            if self.save_top_k == 1:
                self._drop(trainer, previous, place)
        if self.save_last:
            self._keep_last(trainer, metrics)

    def _keep_best(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        score = self._agreed_score(trainer, metrics)
        full = self.save_top_k != -1 and len(self.best_k_models) >= self.save_top_k
        sign = 1 if self.mode == "min" else -1
        if full and not sign * score < sign * self.best_k_models[self.kth_best_model_path]:
            self._say(trainer, metrics, f"was not in top {self.save_top_k}")
            return
        worst = self.kth_best_model_path if full else ""
        self.best_k_models.pop(worst, None)
        place = self._free(trainer, metrics, self.filename, worst)
        self.current_score = self.best_k_models[place] = score
        ranked = sorted(self.best_k_models, key=lambda path: sign * float(self.best_k_models[path]))
        if self.save_top_k == -1 or len(ranked) == self.save_top_k:
            self.kth_best_model_path = ranked[-1]
            self.kth_value = self.best_k_models[ranked[-1]]
        self.best_model_path, self.best_model_score = ranked[0], self.best_k_models[ranked[0]]
        self._say(trainer, metrics, f"reached {float(score):.5f} (best {float(self.best_model_score):.5f}): {place}")
        self._write(trainer, place)
        self._drop(trainer, worst, place)

    def _agreed_score(self, trainer: "Trainer", metrics: dict[str, Any]) -> Tensor:
        """Rank 0's value, on all ranks; NaN counts as the worst."""
        score = float(trainer.strategy.broadcast(float(metrics[self.monitor or ""])))
        if score != score:
            score = float("inf") if self.mode == "min" else float("-inf")
        return torch.tensor(score)

    def _keep_last(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        place = self._free(trainer, metrics, self.CHECKPOINT_NAME_LAST, self.last_model_path)
        previous, self.last_model_path = self.last_model_path, place
        target = self.current_path
        if self.save_last == "link" and target and self._saved_step == trainer.global_step:
            trainer.keeper.afterwards(lambda: ckpt.link(target, place))
        else:
            self._write(trainer, place)
        self._drop(trainer, previous, place)

    def _write(self, trainer: "Trainer", place: str) -> None:
        self.current_path = place
        self._saved_step = trainer.global_step
        trainer.keeper.save(place, self.save_weights_only)
        for logger in trainer.loggers:
            if type(logger).after_save_checkpoint is not Logger.after_save_checkpoint:
                trainer.keeper.waited_for(partial(logger.after_save_checkpoint, self))

    def _drop(self, trainer: "Trainer", place: str, instead: str) -> None:
        """Delete what another file replaces; never what the fit was resumed from, nor what lies elsewhere."""
        if place and place not in (instead, trainer.ckpt_path) and place.startswith(f"{self.dirpath}/"):
            trainer.keeper.afterwards(lambda: ckpt.delete(place))

    def _missing(self, trainer: "Trainer") -> None:
        known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise ConfigurationError(
            f"ModelCheckpoint monitors {self.monitor!r}, which was not logged (since its last save). Logged so far: "
            f"{known}. Log it with self.log({self.monitor!r}, value), or monitor one of those"
        )

    def _say(self, trainer: "Trainer", metrics: dict[str, Any], what: str) -> None:
        if self.verbose:
            trainer.print(f"Epoch {metrics['epoch']}, global step {metrics['step']}: {self.monitor!r} {what}")

    # Names.

    def _metrics(self, trainer: "Trainer", epoch: int) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(trainer.callback_metrics)
        return metrics | {"epoch": epoch, "step": trainer.global_step}

    def _free(self, trainer: "Trainer", metrics: dict[str, Any], template: str | None, allowed: str = "") -> str:
        """The file's path; with a -v<n> while the name is taken by another file than `allowed`."""
        version = None
        while True:
            place = self.format_checkpoint_name(metrics, template, version)
            if place == allowed or not self._enable_version_counter:
                return place
            if place not in self.best_k_models:
                # A restarted fit writes the files of its lost steps again.
                unknown = trainer.is_global_zero and not self._goes_on and ckpt.exists(place)
                if trainer.strategy.all_true(not unknown):
                    return place
            version = self.STARTING_VERSION if version is None else version + 1

    def format_checkpoint_name(
        self, metrics: dict[str, Any], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """The path for these values. A name in the template that is not among them becomes 0."""
        name = _filled(
            filename or self.filename or f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}",
            metrics,
            self.CHECKPOINT_EQUALS_CHAR if self.auto_insert_metric_name else None,
        )
        parts = [part for part in (prefix, name, None if ver is None else f"v{ver}") if part is not None]
        name = self.CHECKPOINT_JOIN_CHAR.join(parts) + self.FILE_EXTENSION
        return ckpt.join(self.dirpath, name) if self.dirpath else name


def _filled(template: str, metrics: dict[str, Any], equals: str | None) -> str:
    def value(match: re.Match[str]) -> str:
        name, form = match[1], match[2] or ""
        found = metrics.get(name, 0)
        if isinstance(found, Tensor):
            found = found.item()
        return (f"{name}{equals}" if equals is not None else "") + format(found, form.removeprefix(":"))

    return re.sub(r"\{([^{}:]+)(:[^{}]*)?\}", value, template)
