"""Trainer: fit, validate, test, predict."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from everstep import seed, unknown_arguments
from everstep.accelerators import Accelerator
from everstep.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    conflicts,
)
from everstep.checkpoint.ckpt import as_place, refuse_unpickling
from everstep.compiled import uncompiled
from everstep.data import LightningDataModule
from everstep.errors import ConfigurationError, Stopped
from everstep.loggers import CSVLogger, DummyLogger, Logger
from everstep.loggers.hparams import tell_loggers
from everstep.module import LightningModule
from everstep.precision import Precision
from everstep.profilers import Profiler, profiler_of
from everstep.strategies import Strategy
from everstep.strategies.place import place
from everstep.strategies.rank import Rank
from everstep.strategies.spawn import on_its_ranks
from everstep.trainer import arguments, missing
from everstep.trainer.ckpt_path import CkptPath
from everstep.trainer.ckpt_path import load as load_ckpt
from everstep.trainer.clock import Duration, seconds
from everstep.trainer.evaluate import Evaluation, Stage
from everstep.trainer.fit import Fit
from everstep.trainer.hooks import Hooks, overridden
from everstep.trainer.keep import Keeper
from everstep.trainer.loaders import Loaders
from everstep.trainer.logs import Logs, Silent, fetched
from everstep.trainer.optimization import Automatic, LightningOptimizer, Manual
from everstep.trainer.optimizers import SchedulerConfig
from everstep.trainer.run import Begun, Run, process_run
from everstep.trainer.state import load_model, load_module
from everstep.trainer.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from everstep.trainer.transfer import transfer
from everstep_protocol.messages import Stage as BoardStage

State = Literal["fit", "validate", "test", "predict"]
_STAGES: dict[State, Stage] = {"validate": "validation", "test": "test", "predict": "predict"}


class Trainer(Rank):
    """Trains a LightningModule. Arguments mean what they mean in Lightning 2.6; those that are not here do not exist.

    Args:
        accelerator: "cpu", "gpu", "tpu", "auto" (the best there is), or an Accelerator.
        devices: of this node: how many, a list of their indices, -1 for all; "auto": what a launcher started, or all
            GPUs, or one rank on a CPU. Several in a script that was started alone: each call starts its ranks itself.
        strategy: "auto" (DDP if there are several ranks), "ddp", "ddp_spawn", "fsdp", … (everstep/strategies), or a
            Strategy.
        precision: "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", or the older 16, 32, 64 and
            "bf16"; or a Precision.
        num_nodes: for scripts that give it; it has to be what the launcher started.
        plugins: a Precision or a Strategy, or a list of such, as another way to give them.
        logger: True: a CSVLogger in default_root_dir; False: none; or a Logger, or several.
        enable_logging: False: logger=False.
        callbacks: called in this order, then a progress bar; those that keep checkpoints come last.
        enable_checkpointing: False: no ModelCheckpoint. Default: one is added, which keeps the latest epoch, unless
            there is one among the callbacks. A run's own checkpoints, from which it recovers, are apart from this.
        max_epochs: stop after so many; -1: never. Default: 1000, if no other end is given.
        max_steps: stop after so many optimizer steps; -1: never.
        max_time: stop after so long: "DD:HH:MM:SS", a timedelta or a dict of its arguments. Earlier lives count.
        min_epochs, min_steps: do not let `should_stop` end the fit earlier.
        limit_*_batches: an int: at most so many batches a rank; a float: that part of them; 0: none.
        overfit_batches: train and validate on so many batches, always the same ones, not shuffled; 0: off.
        fast_dev_run: True or a number: run every loop for 1 or so many batches, without loggers and sanity check.
        val_check_interval: a float: validate so many times 1/x an epoch; an int: every so many batches; or a time.
        check_val_every_n_epoch: validate only in every n-th epoch; None: val_check_interval counts across epochs.
        num_sanity_val_steps: batches of validation before a fit starts, to find errors early; -1: all. Default: 2.
        log_every_n_steps: step values go to the loggers every so many optimizer steps; default: 50.
        accumulate_grad_batches: batches in one optimizer step.
        gradient_clip_val: clip gradients to that norm or value (`gradient_clip_algorithm`: "norm", the default, or
            "value").
        deterministic: True: only deterministic algorithms of torch; "warn": warn about others; None: as torch is set.
        benchmark: let cuDNN choose its fastest algorithms by trying; loses against `deterministic`.
        sync_batchnorm: in training, batch norm takes its statistics over the batches of all ranks.
        inference_mode: evaluate under torch.inference_mode; False: under torch.no_grad.
        use_distributed_sampler: divide the data over the ranks; False: the loaders do so themselves.
        reload_dataloaders_every_n_epochs: ask for the loaders again after so many epochs; 0: never.
        profiler: "simple", "advanced", "pytorch", a Profiler, or None.
        detect_anomaly: torch's anomaly detection while training: names the operation behind a NaN gradient. Slow.
        barebones: everything off that costs time, also self.log: for measuring the bare loop.
        enable_progress_bar: on rank 0. enable_model_summary: a table of the layers, on rank 0, when a fit begins.
        enable_autolog_hparams: give the hyper-parameters to the loggers when a call begins.
        model_registry: not supported.
        default_root_dir: where files go; default: the current folder.
        run: for tests: the run, instead of the one that the environment tells of.

    Raises:
        UnknownArgumentError: an argument that does not exist; says which is meant.
        ConfigurationError: a value or a combination cannot work; says what would.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        devices: int | str | Sequence[int] = "auto",
        strategy: str | Strategy = "auto",
        precision: int | str | Precision | None = None,
        num_nodes: int = 1,
        plugins: Any = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        enable_logging: bool | None = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        enable_checkpointing: bool | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: Duration | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | Duration | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        deterministic: bool | Literal["warn"] | None = None,
        benchmark: bool | None = None,
        sync_batchnorm: bool = False,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        run: Run | None = None,
        **unknown: Any,
    ) -> None:
        unknown_arguments.refuse("Trainer", Trainer.__init__, unknown)
        arguments.check(locals())
        self.run = run or process_run()
        environment = self.run.environment
        seed.ensure_seeded(environment)
        self.strategy = place(environment, accelerator, devices, num_nodes, strategy, precision, plugins)
        self.precision_plugin = self.strategy.precision
        self.strategy.sync_batchnorm = sync_batchnorm
        self._set_algorithms(deterministic, benchmark)
        self.profiler = profiler_of(profiler)
        self.default_root_dir = Path(default_root_dir) if default_root_dir is not None else Path.cwd()

        endless = max_steps != -1 or max_time is not None
        self.max_epochs = (-1 if endless else 1000) if max_epochs is None else max_epochs
        self.min_epochs = min_epochs or 0
        self.max_steps, self.min_steps = max_steps, min_steps or 0
        self.max_seconds = seconds(max_time, "max_time") if max_time is not None else None
        self.limit_train_batches = 1.0 if limit_train_batches is None else limit_train_batches
        self.limit_val_batches = 1.0 if limit_val_batches is None else limit_val_batches
        self.limit_test_batches = 1.0 if limit_test_batches is None else limit_test_batches
        self.limit_predict_batches = 1.0 if limit_predict_batches is None else limit_predict_batches
        self.overfit_batches = overfit_batches
        if overfit_batches:
            self.limit_train_batches = self.limit_val_batches = overfit_batches
        self.val_check_interval, self.val_check_seconds = arguments.interval(val_check_interval)
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = 2 if num_sanity_val_steps is None else num_sanity_val_steps
        self.log_every_n_steps = 50 if log_every_n_steps is None else log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm: Literal["norm", "value"] = gradient_clip_algorithm or "norm"
        self.inference_mode = inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.detect_anomaly = detect_anomaly
        self.barebones = barebones
        self.enable_autolog_hparams = enable_autolog_hparams
        self.fast_dev_run = fast_dev_run
        if barebones:
            enable_progress_bar, logger, self.num_sanity_val_steps, self.log_every_n_steps = False, False, 0, 0
        if enable_logging is False:
            logger = False
        self._loggers = _loggers(True if logger is None else logger, self.default_root_dir)
        if fast_dev_run:
            self._only_try_out(int(fast_dev_run))
        self.callbacks: list[Callback] = (
            [callbacks] if isinstance(callbacks, Callback) or callable(callbacks) else list(callbacks or ())
        )
        conflicts.check(self.callbacks)
        conflicts.check_flags(self.callbacks, enable_progress_bar, enable_model_summary)
        bar = enable_progress_bar is not False
        if bar and self.is_global_zero and not any(isinstance(c, ProgressBar) for c in self.callbacks):
            self.callbacks.append(ProgressBar())
        summary = enable_model_summary is not False and not barebones
        if summary and self.is_global_zero and not any(isinstance(c, ModelSummary) for c in self.callbacks):
            self.callbacks.append(ModelSummary())
        keeping: list[Callback] = list(self.checkpoint_callbacks)
        if keeping and enable_checkpointing is False:
            raise ConfigurationError(
                f"enable_checkpointing=False, but {type(keeping[0]).__name__} is among the callbacks: take one of them "
                "away"
            )
        if not keeping and enable_checkpointing is not False and not barebones:
            keeping = [ModelCheckpoint()]
        self.callbacks = [callback for callback in self.callbacks if not isinstance(callback, Checkpoint)] + keeping
        self.logs = (Silent if barebones else Logs)(self.strategy, self._loggers if self.is_global_zero else [])

        self.state = TrainerState()
        self.should_stop = False  # set it on every rank, and the fit ends after the present step
        self.global_step = 0  # optimizer steps finished, of all optimizers
        self.batches_that_stepped = 0  # windows of batches finished: what loggers count
        self.current_epoch = 0  # epochs finished
        self.num_training_batches: int | float = 0  # of a rank in an epoch
        self.num_batches: dict[Stage, list[int | float]] = {"validation": [], "test": [], "predict": []}
        self.train_dataloader: Any = None  # as they were given
        self.val_dataloaders: Any = None
        self.test_dataloaders: Any = None
        self.predict_dataloaders: Any = None
        self.lightning_optimizers: list[LightningOptimizer] = []
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self.optimization: Automatic | Manual
        self.datamodule: LightningDataModule | None = None
        self.predictions: list[list[Any]] = []  # of a prediction that is running or was the last, by loader
        self.prediction_indices: list[list[list[int] | None]] = []  # of their samples in the datasets, where known
        self._fit: Fit | None = None
        self.keeper = Keeper(self)
        self.ckpt_path: str | None = None  # of the present call, or the last: what it has loaded
        self.resumed = False  # does the present call go on with what an earlier life of the script has begun?

    def _set_algorithms(self, deterministic: bool | Literal["warn"] | None, benchmark: bool | None) -> None:
        if deterministic is not None:
            torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if deterministic:
            # cuBLAS sums in a fixed order only with a workspace of its own.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            if benchmark:
                warnings.warn(
                    "deterministic and benchmark are both on, but algorithms that are chosen by trying differ from run "
                    "to run: benchmark stays off",
                    stacklevel=3,
                )
            benchmark = False
        if benchmark is not None:
            torch.backends.cudnn.benchmark = benchmark

    def _only_try_out(self, batches: int) -> None:
        """fast_dev_run: a few batches of everything, and nothing is written."""
        self.limit_train_batches = self.limit_val_batches = batches
        self.limit_test_batches = self.limit_predict_batches = batches
        self.max_epochs, self.max_steps, self.max_seconds = 1, batches, None
        self.num_sanity_val_steps = 0
        self.val_check_interval, self.val_check_seconds, self.check_val_every_n_epoch = 1.0, None, 1
        self._loggers = [DummyLogger()] if self._loggers else []

    def take_place(self, run: Run) -> None:
        """Go on in a process of a rank's own, to which this Trainer was carried."""
        self.run = run
        self.strategy.environment, self.strategy.start_method = run.environment, None
        if not self.is_global_zero:
            self.callbacks = [callback for callback in self.callbacks if not isinstance(callback, ProgressBar)]
            self.logs.loggers = []

    # The four verbs.

    @on_its_ranks
    def fit(
        self,
        /,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: CkptPath | None = None,
        weights_only: bool | None = None,
        **unknown: Any,
    ) -> None:
        """Train. After a restart of the script: resume, or return at once if this call was completed before.

        Args:
            train_dataloaders: a DataLoader, a list, tuple or dict of them (read together; a CombinedLoader says how),
                or a datamodule; default: the datamodule's or the module's.
            val_dataloaders: a DataLoader, or a list or dict of them; default likewise. Used if there is a
                validation_step.
            ckpt_path: go on from this checkpoint: a path or URL of a .ckpt file or of a run's checkpoints; "last";
                "best"; "latest"; or a step. A restarted script goes on from its own checkpoints instead.
            weights_only: False is refused: nothing is ever unpickled.
        """
        unknown_arguments.refuse("fit", Trainer.fit, unknown)
        refuse_unpickling(weights_only)
        train_dataloaders, datamodule = _datamodule_or(train_dataloaders, datamodule)
        if val_dataloaders is not None and datamodule is not None:
            raise ConfigurationError("both val_dataloaders and a datamodule are given: give one of them")
        model = uncompiled(model)
        _check_module(model)
        if not overridden(model, "training_step"):
            raise ConfigurationError(
                f"{type(model).__name__} has no training_step: define training_step(batch, batch_idx)"
            )

        given = {"train_dataloader": train_dataloaders, "val_dataloader": val_dataloaders}

        def work(hooks: Hooks, begun: Begun) -> Any:
            run_seed = int(self.strategy.broadcast(seed.run_seed()))  # one order of the data for all ranks
            loaders = Loaders(model, datamodule, given)
            fit = self._fit = Fit(
                self, model, hooks, loaders, transfer(self, model, datamodule), begun.restored, run_seed
            )
            with torch.autograd.set_detect_anomaly(self.detect_anomaly or torch.is_anomaly_enabled()):
                fit.run()
            result = {
                "global_step": self.global_step,
                "batches_that_stepped": self.batches_that_stepped,
                "current_epoch": self.current_epoch,
                "metrics": self.logs.numbers(),
                "loggers": [logger.state_dict() for logger in self.logs.loggers],
            }
            self.run.complete("fit", self.strategy, self.global_step - fit.first_step, result, fit.state)

        self.should_stop = False
        self._call("fit", model, datamodule, work, ckpt_path)

    @on_its_ranks
    def validate(
        self,
        /,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: CkptPath | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **unknown: Any,
    ) -> list[dict[str, float]]:
        """One pass over the validation loaders; returns the logged epoch values of each.

        Args:
            model: default: that of the call before. dataloaders: a DataLoader, a list or dict of them, or a datamodule;
                default: the datamodule's or the module's. verbose: print the values on rank 0.
            ckpt_path: load these weights first; as of `fit`. Default: the model's own, or "best" without a model.
        """
        unknown_arguments.refuse("validate", Trainer.validate, unknown)
        refuse_unpickling(weights_only)
        metrics: list[dict[str, float]] = self._evaluate("validate", model, dataloaders, datamodule, ckpt_path)
        if verbose:
            self._print_metrics("validate", metrics)
        return metrics

    @on_its_ranks
    def test(
        self,
        /,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: CkptPath | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        **unknown: Any,
    ) -> list[dict[str, float]]:
        """One pass over the test loaders; returns the logged epoch values of each. Arguments as of `validate`."""
        unknown_arguments.refuse("test", Trainer.test, unknown)
        refuse_unpickling(weights_only)
        metrics: list[dict[str, float]] = self._evaluate("test", model, dataloaders, datamodule, ckpt_path)
        if verbose:
            self._print_metrics("test", metrics)
        return metrics

    @on_its_ranks
    def predict(
        self,
        /,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: CkptPath | None = None,
        weights_only: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """What predict_step returned for each batch of this rank; a list of such lists for several loaders.

        A prediction changes nothing and may be large: it is not recorded, a restarted script makes it again.

        Args:
            return_predictions: False: keep nothing and return None; callbacks have seen each batch.
        """
        unknown_arguments.refuse("predict", Trainer.predict, unknown)
        refuse_unpickling(weights_only)
        outputs: list[list[Any]] = self._evaluate(
            "predict",
            model,
            dataloaders,
            datamodule,
            ckpt_path,
            keep=return_predictions is not False or any(callback.needs_predictions for callback in self.callbacks),
        )
        if not return_predictions:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    def _evaluate(
        self, kind: State, model: LightningModule | None, dataloaders: Any, datamodule: LightningDataModule | None,
        ckpt_path: CkptPath | None, keep: bool = False,
    ) -> Any:  # fmt: skip
        dataloaders, datamodule = _datamodule_or(dataloaders, datamodule)
        module = model if model is not None else self.lightning_module
        if module is None:
            raise ConfigurationError(f"there is nothing to {kind}: give a model, as in trainer.{kind}(model)")
        module = uncompiled(module)
        _check_module(module)
        if model is None and ckpt_path is None and self.best_model_path:
            ckpt_path = "best"
        stage = _STAGES[kind]
        method = {"validation": "val_dataloader"}.get(stage, f"{stage}_dataloader")
        if kind != "predict" and not overridden(module, f"{stage}_step"):
            raise ConfigurationError(
                f"{type(module).__name__} has no {stage}_step: define {stage}_step(batch, batch_idx)"
            )

        def work(hooks: Hooks, begun: Begun) -> Any:
            self.run.stage(BoardStage.EVALUATING)
            run_seed = int(self.strategy.broadcast(seed.run_seed()))
            self.strategy.align_buffers(module)
            metrics: list[dict[str, float]] = []
            outputs: list[list[Any]] = []
            if self.limit_batches(stage) != 0:
                loaders = Loaders(module, datamodule, {method: dataloaders})
                moving = transfer(self, module, datamodule)
                metrics, outputs = Evaluation(self, module, hooks, loaders, moving, stage, run_seed).run(keep=keep)
            if begun.record is None:
                result = {"result": [] if kind == "predict" else metrics, "metrics": self.logs.numbers()}
                result["loggers"] = [logger.state_dict() for logger in self.logs.loggers]
                self.run.complete(kind, self.strategy, 0, result, None)
            return outputs if kind == "predict" else metrics

        return self._call(kind, module, datamodule, work, ckpt_path)

    def _call(
        self,
        kind: State,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        work: Callable[[Hooks, Begun], Any],
        ckpt_path: CkptPath | None,
    ) -> Any:
        """One Trainer call: set up, then work, or take what an earlier life of the script has left."""
        self.strategy.connect(self.run.environment)
        self.run.open(self.strategy)
        begun = self.run.begin(kind)
        self.resumed, self.ckpt_path = begun.record is not None or begun.restored is not None, None
        self.strategy.model, self.logs.module, model.trainer = model, model, self
        self.logs.forget()
        self.datamodule = datamodule
        if datamodule is not None:
            datamodule.trainer = self
        self._take_callbacks_of(model)
        for callback in self.callbacks:
            callback.log, callback.log_dict = model.log, model.log_dict
        self._agree_on_loggers(begun)
        hooks = Hooks(self, model, self.callbacks, datamodule)
        self.state.begin(TrainerFn(kind))
        self.profiler.setup(kind, self.log_dir)
        try:
            for owner in (datamodule, model):
                per_node = owner is None or owner.prepare_data_per_node
                if owner is not None and (self.local_rank if per_node else self.global_rank) == 0:
                    owner.prepare_data()
            self.strategy.barrier()
            hooks.call("setup", kind)
            with self.precision_plugin.init_context():
                model.configure_model()
            chosen = begun.restored if kind == "fit" else None
            if ckpt_path is not None and not (kind == "fit" and self.resumed):
                chosen = load_ckpt(self, ckpt_path)
                if kind == "fit":
                    begun.restored = chosen
            checkpoint = chosen.shared["checkpoint"] if chosen is not None else None
            if checkpoint is not None:
                model.on_load_checkpoint(checkpoint)  # it may change the module, of which nothing is made yet
            self.precision_plugin.convert_module(model)
            self.strategy.setup(model)
            if checkpoint is not None:
                (load_module if kind == "fit" else load_model)(self, model, checkpoint)
            tell_loggers(self, model, datamodule)
            if begun.record is not None and kind != "predict":
                result = self._recorded(kind, model, begun)
                done = self.run.steps_before
                self.run.note(self.strategy, done, stage=kind, max_steps=done or None)
            else:
                result = work(hooks, begun)
            hooks.call("teardown", kind)
        except BaseException as error:
            if not isinstance(error, Stopped):
                hooks.call("on_exception", error)
            self.keeper.abandon()
            for logger in self.logs.loggers:
                logger.finalize("failed")
            self.store_artifacts()
            self.state.end(TrainerStatus.INTERRUPTED)
            raise
        finally:
            self.logs.mode = None
            self.profiler.teardown(kind)
        self.state.end(TrainerStatus.FINISHED)
        for logger in self.logs.loggers:
            logger.finalize("success")
        self.store_artifacts()
        return result

    def _agree_on_loggers(self, begun: Begun) -> None:
        """They write where they did in an earlier life, and all ranks know where that is."""
        states: Any = ()
        if begun.record is not None:
            states = begun.record["loggers"]
        elif begun.restored is not None:
            states = begun.restored.shared["checkpoint"].get("everstep", {}).get("loggers", ())
        for logger, state in zip(self.logs.loggers, states, strict=False):
            logger.load_state_dict(state)
        if self.run.artifacts is not None:
            for folder, name in self._folders_of_loggers() if self.resumed else ():
                self.run.artifacts.fetch(folder, name)
        if self.world_size > 1:
            versions = self.strategy.broadcast([logger.version for logger in self.logs.loggers])
            for logger, version in zip(self.loggers, versions, strict=True):
                if not self.is_global_zero:
                    logger.take_version(version)

    def _take_callbacks_of(self, model: LightningModule) -> None:
        """The module's own callbacks take the place of those of the same class."""
        found = model.configure_callbacks()
        own = [found] if isinstance(found, Callback) else list(found)
        if own:
            self.callbacks = [c for c in self.callbacks if type(c) not in {type(mine) for mine in own}] + own
            conflicts.check(self.callbacks)

    def _recorded(self, kind: State, model: LightningModule, begun: Begun) -> Any:
        """What a call that was completed before has left: metrics, and of a fit the final weights."""
        record = begun.record
        assert record is not None
        self.logs.callback_metrics.update({name: torch.tensor(value) for name, value in record["metrics"].items()})
        if kind != "fit":
            return record["result"]
        self.global_step, self.current_epoch = record["global_step"], record["current_epoch"]
        self.batches_that_stepped = record["batches_that_stepped"]
        if begun.restored is not None:
            self.keeper.fit, self.keeper.left = None, begun.restored.shared["checkpoint"]
        return None

    def each_training_batch(self, step: Callable[..., Any]) -> None:
        """In a fit: call (batch, batch_idx) -> anything for each of this rank's training batches once more, as on the
        way to training_step. Nothing is trained; what `step` logs is dropped."""
        assert self._fit is not None
        logs, self.logs = self.logs, Silent(self.strategy, [])
        try:
            self._fit.each_batch(step)
        finally:
            self.logs = logs

    def _print_metrics(self, kind: str, metrics: list[dict[str, float]]) -> None:
        for number, values in enumerate(metrics):
            which = f", dataloader {number}" if len(metrics) > 1 else ""
            self.print(f"{kind}{which}:", *(f"{name} {value:.6g}" for name, value in sorted(values.items())))

    # Checkpoint files.

    def save_checkpoint(
        self, filepath: str | os.PathLike[str], weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Write a `.ckpt` file to a path or URL; it is there when this returns. Called by all ranks.

        Args:
            weights_only: without what only a training needs: optimizers, schedulers, callbacks, random states.

        Raises:
            ConfigurationError: no call has been made yet, so there is nothing to save.
            StorageError: it could not be written.
        """
        if storage_options is not None:
            raise ConfigurationError(
                "storage_options are for a CheckpointIO of Lightning's: leave them out; object stores take credentials "
                "and endpoints from the variables of their own tools, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
            )
        if self.lightning_module is None:
            raise ConfigurationError(
                "there is nothing to save yet: call fit, validate, test or predict with a model first"
            )
        self.keeper.save_now(as_place(filepath), bool(weights_only))

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

    @property
    def validates(self) -> bool:
        """Does the fit that is running, or was the last, validate?"""
        return self._fit is not None and self._fit.validation is not None

    def artifacts(self, name: str) -> str:
        """A folder for this Trainer's files: in its logger's; in a run below the checkpoint uri, to outlive the pod."""
        uri = self.run.environment.checkpoint_uri
        root = f"{as_place(uri)}/artifacts" if uri is not None else str(self.default_root_dir.absolute())
        logger = self.logger
        if logger is None or self.fast_dev_run:
            return f"{root}/{name}"
        if uri is None and logger.log_dir is not None:
            return f"{os.path.abspath(logger.log_dir)}/{name}"
        return f"{root}/{_name_of(logger)}/{name}"

    def _folders_of_loggers(self) -> list[tuple[str, str]]:
        """Those that log here and write files: their folder, and its name below artifacts/."""
        return [(logger.log_dir, _name_of(logger)) for logger in self.logs.loggers if logger.log_dir is not None]

    def store_artifacts(self) -> None:
        """Copy what loggers and profilers have written to where it outlives this pod, if there is such a place."""
        if self.run.artifacts is not None and not self.fast_dev_run:
            self.run.artifacts.put(self._folders_of_loggers())

    def __getstate__(self) -> dict[str, Any]:
        """A copy, and what is pickled, is between two calls: it has no fit with loaders in the middle of their data."""
        return {**vars(self), "_fit": None}

    def __getattr__(self, name: str) -> Any:
        """
        Raises:
            AttributeError: always, so that hasattr is False; says what to use instead of an attribute of Lightning's.
        """
        if name in missing.INSTEAD:
            raise AttributeError(f"Everstep's Trainer has no {name}; use instead: {missing.INSTEAD[name]}")
        return object.__getattribute__(self, name)  # raises what a property has raised, or that there is none

    # What hooks ask.

    def limit_batches(self, stage: Stage) -> int | float:
        """limit_val_batches, limit_test_batches or limit_predict_batches."""
        limits = {"validation": self.limit_val_batches, "test": self.limit_test_batches}
        return limits.get(stage, self.limit_predict_batches)

    def told_of_loaders(self, stage: Stage, loaders: Any, counts: list[int | float]) -> None:
        """An evaluation has made its loaders: keep them, and their batches, for whoever asks."""
        setattr(self, {"validation": "val_dataloaders"}.get(stage, f"{stage}_dataloaders"), loaders)
        self.num_batches[stage] = counts

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

    @property
    def interrupted(self) -> bool:
        """Has the last call ended by an exception, Ctrl-C included?"""
        return self.state.status == TrainerStatus.INTERRUPTED

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
        self._loggers = _loggers(loggers or False, self.default_root_dir)
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
    def is_log_step(self) -> bool:
        """Do the loggers get the values of the optimizer step that is under way?"""
        every = self.log_every_n_steps
        return bool(every) and (self.batches_that_stepped + 1) % every == 0

    @property
    def is_last_batch(self) -> bool:
        """Is the present training batch the epoch's last?"""
        return self._fit is not None and self._fit.last_batch


def _name_of(logger: Logger) -> str:
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return f"{logger.name}/{version}"


def _check_module(model: Any) -> None:
    if isinstance(model, type):
        raise ConfigurationError(f"the model is the class {model.__name__}: give an instance, {model.__name__}(…)")
    if not isinstance(model, LightningModule):
        raise ConfigurationError(f"the model is a {type(model).__name__}: it has to be a LightningModule of Everstep")


def _loggers(logger: Logger | Iterable[Logger] | bool, root: Path) -> list[Logger]:
    if logger is True:
        return [CSVLogger(root)]
    if logger is False:
        return []
    given = [logger] if isinstance(logger, Logger | str) or not isinstance(logger, Iterable) else list(logger)
    for one in given:
        if not isinstance(one, Logger):
            raise ConfigurationError(
                f"logger={one!r}: give True, False or a Logger of everstep.loggers, such as TensorBoardLogger(), or a "
                "list of such"
            )
    return given


def _datamodule_or(loaders: Any, datamodule: LightningDataModule | None) -> tuple[Any, LightningDataModule | None]:
    """A datamodule may stand where loaders do."""
    if isinstance(loaders, LightningDataModule):
        return None, loaders
    if loaders is not None and datamodule is not None:
        raise ConfigurationError("both dataloaders and a datamodule are given: give one of them")
    return loaders, datamodule
