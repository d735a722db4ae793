"""What a Trainer can be asked, by hooks, callbacks and scripts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from everstep.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar
from everstep.errors import ConfigurationError
from everstep.loggers import Logger, loggers_of
from everstep.module import LightningModule
from everstep.precision import Precision
from everstep.strategies.rank import Rank
from everstep.trainer.logs import Logs, fetched
from everstep.trainer.run import Run
from everstep.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus

if TYPE_CHECKING:
    from everstep.data import LightningDataModule
    from everstep.trainer.evaluate import Stage
    from everstep.trainer.fit import Fit


class Properties(Rank):
    """Of the Trainer, which keeps what they tell of."""

    should_stop = False  # set it on every rank, and the fit ends after the present step
    global_step = 0  # optimizer steps finished, of all optimizers
    batches_that_stepped = 0  # windows of batches finished: what loggers count
    current_epoch = 0  # epochs finished
    num_training_batches: int | float = 0  # of a rank in an epoch
    train_dataloader: Any = None  # a loader, or a list, tuple or dict of them
    val_dataloaders: Any = None
    test_dataloaders: Any = None
    predict_dataloaders: Any = None
    datamodule: "LightningDataModule | None" = None
    ckpt_path: str | None = None  # of the present call, or the last: what it has loaded
    resumed = False  # does the present call go on with what an earlier life of the script has begun?

    run: Run
    state: TrainerState
    logs: Logs
    precision_plugin: Precision
    callbacks: list[Callback]
    default_root_dir: Path
    num_sanity_val_steps: int
    log_every_n_steps: int
    num_batches: "dict[Stage, list[int | float]]"
    _fit: "Fit | None" = None
    _loggers: list[Logger]

    # The call.

    @property
    def fitting(self) -> bool:
        """Is a fit running? It may be validating."""
        return self.state.status == TrainerStatus.RUNNING and self.state.fn == TrainerFn.FITTING

    @property
    def training(self) -> bool:
        """Is a fit at its training batches?"""
        return self.state.stage == RunningStage.TRAINING

    @property
    def sanity_checking(self) -> bool:
        """Is a fit at its sanity check?"""
        return self.state.stage == RunningStage.SANITY_CHECKING

    @property
    def validating(self) -> bool:
        """Also inside a fit; not in its sanity check."""
        return self.state.stage == RunningStage.VALIDATING

    @property
    def testing(self) -> bool:
        """Is a test running?"""
        return self.state.stage == RunningStage.TESTING

    @property
    def predicting(self) -> bool:
        """Is a prediction running?"""
        return self.state.stage == RunningStage.PREDICTING

    @property
    def evaluating(self) -> bool:
        """Is a validation (also a fit's, also its sanity check), test or prediction running?"""
        return self.state.stage is not None and self.state.stage.evaluating

    @property
    def interrupted(self) -> bool:
        """Has the last call ended by an exception, Ctrl-C included?"""
        return self.state.status == TrainerStatus.INTERRUPTED

    @property
    def is_log_step(self) -> bool:
        """Do the loggers get the values of the optimizer step that is under way?"""
        every = self.log_every_n_steps
        return bool(every) and (self.batches_that_stepped + 1) % every == 0

    @property
    def is_last_batch(self) -> bool:
        """Is the present training batch the epoch's last?"""
        return self._fit is not None and self._fit.last_batch

    @property
    def validates(self) -> bool:
        """Does the fit that is running, or was the last, validate?"""
        return self._fit is not None and self._fit.validation is not None

    # Where it runs.

    @property
    def precision(self) -> str:
        """Its name, such as "32-true"; the object is `precision_plugin`."""
        return self.precision_plugin.name

    @property
    def num_devices(self) -> int:
        """That this node's ranks use."""
        return len(self.strategy.devices)

    @property
    def device_ids(self) -> list[int]:
        """The indices of this node's devices."""
        return list(self.strategy.devices)

    @property
    def num_nodes(self) -> int:
        """That the launcher has started."""
        return self.run.environment.num_nodes

    @property
    def lightning_module(self) -> LightningModule | None:
        """Of the present call, or the last."""
        model: LightningModule | None = self.strategy.model
        return model

    @property
    def model(self) -> LightningModule | None:
        """Of the present call, or the last."""
        return self.lightning_module

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of the fit that is running, or was the last."""
        return self.strategy.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.strategy.optimizers = optimizers

    @property
    def scaler(self) -> Any:
        """The torch.amp.GradScaler of 16-mixed; None: there is none."""
        return getattr(self.precision_plugin, "scaler", None)

    # How much there is to do.

    @property
    def num_val_batches(self) -> list[int | float]:
        """Of a rank, of each loader."""
        return self.num_batches["validation"]

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Of a rank, of each loader, in the sanity check."""
        most = self.num_sanity_val_steps
        return [min(count, most) if most >= 0 else count for count in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        """Of a rank, of each loader."""
        return self.num_batches["test"]

    @property
    def num_predict_batches(self) -> list[int | float]:
        """Of a rank, of each loader."""
        return self.num_batches["predict"]

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the fit that is running, or was the last; inf: it cannot be known. For schedulers, in
        configure_optimizers.

        Raises:
            ConfigurationError: there was no fit yet.
        """
        if self._fit is None:
            raise ConfigurationError(
                "estimated_stepping_batches is known in a fit: ask in configure_optimizers or later"
            )
        return self._fit.stepping_batches

    # What listens.

    @property
    def logger(self) -> Logger | None:
        """The first logger. May be set, as the argument: to a Logger, or None."""
        return self._loggers[0] if self._loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [] if logger is None else [logger]

    @property
    def loggers(self) -> list[Logger]:
        """All of them. May be set, to a list of Loggers, between two calls or inside of one.

        Raises:
            ConfigurationError: one of them is none.
        """
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: Iterable[Logger] | None) -> None:
        self._loggers = loggers_of(loggers or False, self.default_root_dir)
        self.logs.loggers = self._loggers if self.is_global_zero else []

    @property
    def log_dir(self) -> str | None:
        """The first logger's folder of this run; without a logger default_root_dir."""
        return self.logger.log_dir if self.logger is not None else str(self.default_root_dir)

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """The latest of everything logged, for callbacks and schedulers."""
        return self.logs.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, torch.Tensor]:
        """The latest of everything logged that is meant for the loggers."""
        return self.logs.latest()

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest of everything logged with prog_bar=True. Asking for it waits for the device."""
        return fetched(self.logs.progress_bar_metrics)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All of them."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The bar; None: there is none, as on ranks other than 0."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All that keep checkpoints, which come last."""
        return [callback for callback in self.callbacks if isinstance(callback, Checkpoint)]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def best_model_path(self) -> str:
        """Of the first ModelCheckpoint that has one; else ""."""
        paths = [c.best_model_path for c in self.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        return next((path for path in paths if path), "")
