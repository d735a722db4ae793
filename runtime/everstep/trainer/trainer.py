"""Trainer: fit, validate, test, predict."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from everstep import seed, unknown_arguments
from everstep.accelerators import Accelerator
from everstep.callbacks import Callback, ProgressBar
from everstep.callbacks.defaults import with_defaults
from everstep.checkpoint.ckpt import as_place, refuse_unpickling
from everstep.compiled import uncompiled
from everstep.data import LightningDataModule
from everstep.errors import ConfigurationError
from everstep.loggers import DummyLogger, Logger, loggers_of
from everstep.module import LightningModule
from everstep.precision import Precision
from everstep.profilers import Profiler, profiler_of
from everstep.strategies import Strategy
from everstep.strategies.place import place
from everstep.strategies.spawn import on_its_ranks
from everstep.trainer import arguments, missing
from everstep.trainer.call import Verb, call
from everstep.trainer.ckpt_path import CkptPath
from everstep.trainer.clock import Duration, seconds
from everstep.trainer.deterministic import choose_algorithms
from everstep.trainer.evaluate import METHODS, Evaluation, Stage
from everstep.trainer.fit import Fit
from everstep.trainer.hooks import Hooks, overridden
from everstep.trainer.keep import Keeper
from everstep.trainer.loaders import Loaders
from everstep.trainer.logs import Logs, Silent
from everstep.trainer.optimization import Automatic, LightningOptimizer, Manual
from everstep.trainer.optimizers import SchedulerConfig
from everstep.trainer.properties import Properties
from everstep.trainer.run import Begun, Run, process_run
from everstep.trainer.states import TrainerState
from everstep.trainer.transfer import transfer
from everstep_protocol.messages import Stage as BoardStage

_STAGES: dict[Verb, Stage] = {"validate": "validation", "test": "test", "predict": "predict"}


class Trainer(Properties):
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
        if barebones:
            enable_progress_bar = logger = False
            num_sanity_val_steps = log_every_n_steps = 0
        if enable_logging is False:
            logger = False

        # Where it runs, and with what.
        self.run = run or process_run()
        environment = self.run.environment
        seed.ensure_seeded(environment)
        self.strategy = place(environment, accelerator, devices, num_nodes, strategy, precision, plugins)
        self.precision_plugin = self.strategy.precision
        self.strategy.sync_batchnorm = sync_batchnorm
        choose_algorithms(deterministic, benchmark)
        self.profiler = profiler_of(profiler)
        self.default_root_dir = Path(default_root_dir) if default_root_dir is not None else Path.cwd()

        # How much, how long, and how.
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
        self.gradient_clip_algorithm: Literal["norm", "value"] | None = gradient_clip_algorithm
        self.inference_mode = inference_mode
        self.use_distributed_sampler = use_distributed_sampler
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.detect_anomaly = detect_anomaly
        self.barebones = barebones
        self.enable_autolog_hparams = enable_autolog_hparams
        self.fast_dev_run = fast_dev_run

        # What listens.
        self._loggers = loggers_of(True if logger is None else logger, self.default_root_dir)
        if fast_dev_run:
            self._only_try_out(int(fast_dev_run))
        self.callbacks = with_defaults(
            callbacks, enable_progress_bar, enable_model_summary, enable_checkpointing,
            barebones=barebones, main=self.is_global_zero,
        )  # fmt: skip
        self.logs = (Silent if barebones else Logs)(self.strategy, self._loggers if self.is_global_zero else [])

        # Where it is.
        self.keeper = Keeper(self)
        self.state = TrainerState()
        self.num_batches: dict[Stage, list[int | float]] = {"validation": [], "test": [], "predict": []}
        self.lightning_optimizers: list[LightningOptimizer] = []
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self.optimization: Automatic | Manual
        self.predictions: list[list[Any]] = []  # of a prediction that is running or was the last, by loader
        self.prediction_indices: list[list[list[int] | None]] = []  # of their samples in the datasets, where known

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
        _check_verb("fit", weights_only, unknown)
        train_dataloaders, datamodule = _datamodule_or(train_dataloaders, datamodule)
        if val_dataloaders is not None and datamodule is not None:
            raise ConfigurationError("both val_dataloaders and a datamodule are given: give one of them")
        model = uncompiled(model)
        _check_model(model, "training_step")
        given = {"train_dataloader": train_dataloaders, "val_dataloader": val_dataloaders}

        def work(hooks: Hooks, begun: Begun) -> None:
            loaders, moving = Loaders(model, datamodule, given), transfer(self, model, datamodule)
            fit = self._fit = Fit(self, model, hooks, loaders, moving, begun.restored, self._seed_of_all())
            with torch.autograd.set_detect_anomaly(self.detect_anomaly or torch.is_anomaly_enabled()):
                fit.run()
            result = {
                "global_step": self.global_step,
                "batches_that_stepped": self.batches_that_stepped,
                "current_epoch": self.current_epoch,
            }
            self._complete("fit", result, self.global_step - fit.first_step, fit.state)

        self.should_stop = False
        call(self, "fit", model, datamodule, work, ckpt_path)

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
        _check_verb("validate", weights_only, unknown)
        return self._measure("validate", model, dataloaders, datamodule, ckpt_path, verbose)

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
        _check_verb("test", weights_only, unknown)
        return self._measure("test", model, dataloaders, datamodule, ckpt_path, verbose)

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
        _check_verb("predict", weights_only, unknown)
        keep = return_predictions is not False or any(callback.needs_predictions for callback in self.callbacks)
        outputs: list[list[Any]] = self._evaluate("predict", model, dataloaders, datamodule, ckpt_path, keep)
        if not return_predictions:
            return None
        return outputs[0] if len(outputs) == 1 else outputs

    def _measure(
        self, verb: Verb, model: LightningModule | None, dataloaders: Any, datamodule: LightningDataModule | None,
        ckpt_path: CkptPath | None, verbose: bool,
    ) -> list[dict[str, float]]:  # fmt: skip
        metrics: list[dict[str, float]] = self._evaluate(verb, model, dataloaders, datamodule, ckpt_path)
        for number, values in enumerate(metrics if verbose else ()):
            which = f", dataloader {number}" if len(metrics) > 1 else ""
            self.print(f"{verb}{which}:", *(f"{name} {value:.6g}" for name, value in sorted(values.items())))
        return metrics

    def _evaluate(
        self, verb: Verb, model: LightningModule | None, dataloaders: Any, datamodule: LightningDataModule | None,
        ckpt_path: CkptPath | None, keep: bool = False,
    ) -> Any:  # fmt: skip
        """Metrics of each loader; of a prediction what its batches came to."""
        dataloaders, datamodule = _datamodule_or(dataloaders, datamodule)
        module = model if model is not None else self.lightning_module
        if module is None:
            raise ConfigurationError(f"there is nothing to {verb}: give a model, as in trainer.{verb}(model)")
        module = uncompiled(module)
        predicts = verb == "predict"
        stage = _STAGES[verb]
        _check_model(module, None if predicts else f"{stage}_step")
        if model is None and ckpt_path is None and self.best_model_path:
            ckpt_path = "best"

        def work(hooks: Hooks, begun: Begun) -> Any:
            self.run.stage(BoardStage.EVALUATING)
            run_seed = self._seed_of_all()
            self.strategy.align_buffers(module)
            metrics: list[dict[str, float]] = []
            outputs: list[list[Any]] = []
            if self.limit_batches(stage) != 0:
                loaders = Loaders(module, datamodule, {METHODS[stage]: dataloaders})
                moving = transfer(self, module, datamodule)
                metrics, outputs = Evaluation(self, module, hooks, loaders, moving, stage, run_seed).run(keep=keep)
            if begun.record is None:
                self._complete(verb, {"result": [] if predicts else metrics})
            return outputs if predicts else metrics

        return call(self, verb, module, datamodule, work, ckpt_path)

    def _seed_of_all(self) -> int:
        """One order of the data for all ranks."""
        return int(self.strategy.broadcast(seed.run_seed()))

    def _complete(
        self, verb: Verb, result: dict[str, Any], steps: int = 0, state: Callable[[], Any] | None = None
    ) -> None:
        """Record what a call has come to, for later lives of the script."""
        loggers = [logger.state_dict() for logger in self.logs.loggers]
        result = {**result, "metrics": self.logs.numbers(), "loggers": loggers}
        self.run.complete(verb, self.strategy, steps, result, state)

    def each_training_batch(self, step: Callable[..., Any]) -> None:
        """In a fit: call (batch, batch_idx) -> anything for each of this rank's training batches once more, as on the
        way to training_step. Nothing is trained; what `step` logs is dropped."""
        assert self._fit is not None
        logs, self.logs = self.logs, Silent(self.strategy, [])
        try:
            self._fit.each_batch(step)
        finally:
            self.logs = logs

    # Files.

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

    def folders_of_loggers(self) -> list[tuple[str, str]]:
        """Those that log here and write files: their folder, and its name below artifacts/."""
        return [(logger.log_dir, _name_of(logger)) for logger in self.logs.loggers if logger.log_dir is not None]

    def store_artifacts(self) -> None:
        """Copy what loggers and profilers have written to where it outlives this pod, if there is such a place."""
        if self.run.artifacts is not None and not self.fast_dev_run:
            self.run.artifacts.put(self.folders_of_loggers())

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
        setattr(self, f"{METHODS[stage]}s", loaders)
        self.num_batches[stage] = counts


def _name_of(logger: Logger) -> str:
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return f"{logger.name}/{version}"


def _check_verb(verb: Verb, weights_only: bool | None, unknown: dict[str, Any]) -> None:
    unknown_arguments.refuse(verb, getattr(Trainer, verb), unknown)
    refuse_unpickling(weights_only)


def _check_model(model: Any, step: str | None) -> None:
    """`step`: that it has to have; None: there is a default."""
    if isinstance(model, type):
        raise ConfigurationError(f"the model is the class {model.__name__}: give an instance, {model.__name__}(…)")
    if not isinstance(model, LightningModule):
        raise ConfigurationError(f"the model is a {type(model).__name__}: it has to be a LightningModule of Everstep")
    if "_parameters" not in vars(model):
        raise ConfigurationError(f"{type(model).__name__}.__init__ does not call super().__init__(): do so first")
    if step is not None and not overridden(model, step):
        raise ConfigurationError(f"{type(model).__name__} has no {step}: define {step}(batch, batch_idx)")


def _datamodule_or(loaders: Any, datamodule: LightningDataModule | None) -> tuple[Any, LightningDataModule | None]:
    """A datamodule may stand where loaders do."""
    if isinstance(loaders, LightningDataModule):
        return None, loaders
    if loaders is not None and datamodule is not None:
        raise ConfigurationError("both dataloaders and a datamodule are given: give one of them")
    return loaders, datamodule
