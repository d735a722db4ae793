"""Trainer: fit, validate, test, predict."""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch

from everstep import seed
from everstep.callbacks import Callback, ProgressBar
from everstep.data import LightningDataModule
from everstep.errors import ConfigurationError, Stopped
from everstep.loggers import CSVLogger, Logger
from everstep.module import LightningModule
from everstep.precision import Precision
from everstep.strategies import DDPStrategy, Strategy
from everstep.trainer.evaluate import Evaluation, Stage
from everstep.trainer.fit import Fit
from everstep.trainer.hooks import Hooks, overridden
from everstep.trainer.logs import Logs
from everstep.trainer.optimizers import SchedulerConfig
from everstep.trainer.run import Begun, Run, process_run
from everstep.trainer.state import load_module
from everstep_protocol.messages import Stage as BoardStage

State = Literal["fit", "validate", "test", "predict"]
_STAGES: dict[State, Stage] = {"validate": "validation", "test": "test", "predict": "predict"}


class Trainer:
    """Trains a LightningModule. Arguments mean what they mean in Lightning 2.6; those that are not here do not exist.

    Args:
        accelerator: "cpu" or "auto".
        devices: ranks on this machine: 1, or what the launcher started; "auto" takes what there is.
        strategy: "auto" (DDP if a launcher started several ranks), "ddp", or a Strategy.
        precision: 32, "32" or "32-true".
        logger: True: a CSVLogger in default_root_dir; False or None: none; or a Logger, or several.
        callbacks: called in this order; a progress bar comes last.
        max_epochs: stop after so many; -1: never. Default: 1000, if max_steps is not given either.
        max_steps: stop after so many optimizer steps; -1: never.
        limit_*_batches: an int: at most so many batches a rank; a float: that part of them.
        val_check_interval: a float: validate so many times 1/x an epoch; an int: every so many batches.
        check_val_every_n_epoch: validate only in every n-th epoch.
        num_sanity_val_steps: batches of validation before a fit starts, to find errors early; -1: all.
        log_every_n_steps: step values go to the loggers every so many optimizer steps.
        accumulate_grad_batches: batches in one optimizer step.
        gradient_clip_val: clip gradients to that norm or value (`gradient_clip_algorithm`: "norm" or "value").
        deterministic: True: only deterministic algorithms of torch; "warn": warn about others; None: as torch is set.
        enable_progress_bar: on rank 0.
        default_root_dir: where files go; default: the current folder.
        run: for tests: the run, instead of the one that the environment tells of.

    Raises:
        TypeError: an unknown argument; names the nearest known one.
        ConfigurationError: a value or a combination cannot work; says what would.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int | str = "auto",
        strategy: str | Strategy = "auto",
        precision: int | str | Precision = "32-true",
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        max_epochs: int | None = None,
        max_steps: int = -1,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        val_check_interval: int | float = 1.0,
        check_val_every_n_epoch: int = 1,
        num_sanity_val_steps: int = 2,
        log_every_n_steps: int = 50,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        deterministic: bool | Literal["warn"] | None = None,
        enable_progress_bar: bool = True,
        default_root_dir: str | os.PathLike[str] | None = None,
        run: Run | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(_unknown(next(iter(unknown))))
        self.run = run or process_run()
        environment = self.run.environment
        seed.ensure_seeded(environment)
        _check_numbers(locals())
        if accelerator not in ("auto", "cpu"):
            raise ConfigurationError(f'accelerator={accelerator!r} is not known here: give "cpu" or "auto"')
        if precision not in (32, "32", "32-true") and not isinstance(precision, Precision):
            raise ConfigurationError(f"precision={precision!r} is not known here: give 32 or a Precision")
        if gradient_clip_algorithm not in ("norm", "value"):
            raise ConfigurationError(f'gradient_clip_algorithm={gradient_clip_algorithm!r}: give "norm" or "value"')
        if deterministic is not None:
            torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        _check_devices(devices, environment.local_world_size if environment.launched else None)
        self.strategy = _strategy(strategy, environment.world_size)
        self.strategy.environment = environment
        self.precision = precision if isinstance(precision, Precision) else Precision()
        self.default_root_dir = Path(default_root_dir) if default_root_dir is not None else Path.cwd()
        self.max_epochs = (1000 if max_steps == -1 else -1) if max_epochs is None else max_epochs
        self.max_steps = max_steps
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.limit_predict_batches = limit_predict_batches
        self.val_check_interval = val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = num_sanity_val_steps
        self.log_every_n_steps = log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.loggers = _loggers(True if logger is None else logger, self.default_root_dir)
        self.has_loggers = bool(self.loggers)
        self.callbacks: list[Callback] = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        _check_callbacks(self.callbacks)
        if enable_progress_bar and self.is_global_zero and not any(isinstance(c, ProgressBar) for c in self.callbacks):
            self.callbacks.append(ProgressBar())
        self.logs = Logs(self.strategy, self.loggers if self.is_global_zero else [])

        self.state: State | None = None  # of the Trainer call that is running
        self.sanity_checking = False
        self.should_stop = False  # set it on every rank, and the fit ends after the present step
        self.global_step = 0  # optimizer steps finished
        self.current_epoch = 0  # epochs finished
        self.num_training_batches: int | float = 0  # of a rank in an epoch
        self.optimizers: list[torch.optim.Optimizer] = []
        self.lr_scheduler_configs: list[SchedulerConfig] = []
        self.lightning_module: LightningModule | None = None
        self.datamodule: LightningDataModule | None = None

    # The four verbs.

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
    ) -> None:
        """Train. After a restart of the script: resume, or return at once if this call was completed before.

        Args:
            train_dataloaders: a DataLoader (or a datamodule); default: the datamodule's or the module's.
            val_dataloaders: a DataLoader or a list of them; default likewise. Used if there is a validation_step.
        """
        train_dataloaders, datamodule = _datamodule_or(train_dataloaders, datamodule)
        if not overridden(model, "training_step"):
            raise ConfigurationError(
                f"{type(model).__name__} has no training_step: define training_step(batch, batch_idx)"
            )

        def work(hooks: Hooks, begun: Begun) -> Any:
            run_seed = int(self.strategy.broadcast(str(seed.run_seed())))  # one order of the data for all ranks
            loader = _loader("train_dataloader", train_dataloaders, model, datamodule)
            validation = self._validation(model, hooks, val_dataloaders, datamodule, run_seed)
            fit = Fit(self, model, hooks, loader, validation, begun.restored, run_seed)
            fit.run()
            result = {
                "global_step": self.global_step,
                "current_epoch": self.current_epoch,
                "metrics": {name: float(value) for name, value in self.logs.callback_metrics.items()},
                "loggers": [logger.state_dict() for logger in self.logs.loggers],
            }
            self.run.complete("fit", self.strategy, self.global_step - fit.first_step, result, fit.state)

        self.should_stop = False
        self._call("fit", model, datamodule, work)

    def validate(
        self, model: LightningModule, dataloaders: Any = None, *, datamodule: LightningDataModule | None = None
    ) -> list[dict[str, float]]:
        """One pass over the validation loaders; returns the logged epoch values of each."""
        metrics: list[dict[str, float]] = self._evaluate("validate", model, "val_dataloader", dataloaders, datamodule)
        return metrics

    def test(
        self, model: LightningModule, dataloaders: Any = None, *, datamodule: LightningDataModule | None = None
    ) -> list[dict[str, float]]:
        """One pass over the test loaders; returns the logged epoch values of each."""
        metrics: list[dict[str, float]] = self._evaluate("test", model, "test_dataloader", dataloaders, datamodule)
        return metrics

    def predict(
        self, model: LightningModule, dataloaders: Any = None, *, datamodule: LightningDataModule | None = None
    ) -> list[Any]:
        """What predict_step returned for each batch of this rank; a list of such lists for several loaders.

        A prediction changes nothing and may be large: it is not recorded, a restarted script makes it again.
        """
        outputs: list[list[Any]] = self._evaluate("predict", model, "predict_dataloader", dataloaders, datamodule)
        return outputs[0] if len(outputs) == 1 else outputs

    def _evaluate(
        self, kind: State, model: LightningModule, method: str, dataloaders: Any, datamodule: LightningDataModule | None
    ) -> Any:
        dataloaders, datamodule = _datamodule_or(dataloaders, datamodule)
        stage = _STAGES[kind]
        if kind != "predict" and not overridden(model, f"{stage}_step"):
            raise ConfigurationError(
                f"{type(model).__name__} has no {stage}_step: define {stage}_step(batch, batch_idx)"
            )

        def work(hooks: Hooks, begun: Begun) -> Any:
            self.run.stage(BoardStage.EVALUATING)
            loader = _loader(method, dataloaders, model, datamodule)
            run_seed = int(self.strategy.broadcast(str(seed.run_seed())))
            self.strategy.align_buffers(model)
            metrics, outputs = Evaluation(self, model, hooks, loader, stage, run_seed).run()
            if begun.record is None:
                result = {"result": [] if kind == "predict" else metrics}
                result["loggers"] = [logger.state_dict() for logger in self.logs.loggers]
                self.run.complete(kind, self.strategy, 0, result, None)
            return outputs if kind == "predict" else metrics

        return self._call(kind, model, datamodule, work)

    def _call(
        self,
        kind: State,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        work: Callable[[Hooks, Begun], Any],
    ) -> Any:
        """One Trainer call: set up, then work, or take what an earlier life of the script has left."""
        self.strategy.connect(self.run.environment)
        self.run.open(self.strategy)
        begun = self.run.begin(kind)
        self.lightning_module, self.datamodule, model.trainer = model, datamodule, self
        if datamodule is not None:
            datamodule.trainer = self
        hooks = Hooks(self, model, self.callbacks, datamodule)
        self.state, self.logs.mode = kind, False
        try:
            if self.local_rank == 0:
                (datamodule or model).prepare_data()
            self.strategy.barrier()
            hooks.call("setup", kind)
            if begun.record is not None:
                for logger, state in zip(self.logs.loggers, begun.record["loggers"], strict=False):
                    logger.load_state_dict(state)
            if begun.record is not None and kind != "predict":
                result = self._recorded(kind, model, begun)
            else:
                result = work(hooks, begun)
            hooks.call("teardown", kind)
        except BaseException as error:
            if not isinstance(error, Stopped):
                hooks.call("on_exception", error)
            for logger in self.logs.loggers:
                logger.finalize("failed")
            raise
        finally:
            self.state, self.logs.mode = None, None
        for logger in self.logs.loggers:
            logger.finalize("success")
        return result

    def _recorded(self, kind: State, model: LightningModule, begun: Begun) -> Any:
        """What a call that was completed before has left: metrics, and of a fit the final weights."""
        record = begun.record
        assert record is not None
        if kind != "fit":
            result: list[dict[str, float]] = record["result"]
            for metrics in result:
                self.logs.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
            return result
        self.global_step, self.current_epoch = record["global_step"], record["current_epoch"]
        self.logs.callback_metrics.update({name: torch.tensor(value) for name, value in record["metrics"].items()})
        if begun.restored is not None:
            load_module(self, begun.restored.shared["checkpoint"])
        return None

    def _validation(
        self, model: LightningModule, hooks: Hooks, loaders: Any, datamodule: LightningDataModule | None, run_seed: int
    ) -> Evaluation | None:
        if self.limit_val_batches == 0:
            return None
        found = _given("val_dataloader", loaders, model, datamodule)
        has_step = overridden(model, "validation_step")
        if found is None:
            if has_step:
                warnings.warn(
                    f"{type(model).__name__} has a validation_step, but there is no val_dataloader: no validation",
                    stacklevel=4,
                )
            return None
        if not has_step:
            warnings.warn(
                f"there is a val_dataloader, but {type(model).__name__} has no validation_step: no validation",
                stacklevel=4,
            )
            return None
        return Evaluation(self, model, hooks, found, "validation", run_seed)

    # What hooks ask.

    @property
    def global_rank(self) -> int:
        return self.strategy.rank

    @property
    def local_rank(self) -> int:
        return self.run.environment.local_rank

    @property
    def node_rank(self) -> int:
        return self.run.environment.node_rank

    @property
    def world_size(self) -> int:
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.strategy.rank == 0

    @property
    def logger(self) -> Logger | None:
        """The first logger."""
        return self.loggers[0] if self.loggers else None

    @property
    def log_dir(self) -> str | None:
        return self.logger.log_dir if self.logger is not None else str(self.default_root_dir)

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """The latest of everything logged, for callbacks and schedulers."""
        return self.logs.callback_metrics

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The latest of what went to the loggers."""
        return self.logs.logged_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, torch.Tensor]:
        return self.logs.progress_bar_metrics

    @property
    def training(self) -> bool:
        return self.state == "fit" and not self.sanity_checking

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0."""
        if self.is_global_zero:
            print(*args, **kwargs)


def _unknown(name: str) -> str:
    known = [n for n in inspect.signature(Trainer.__init__).parameters if n not in ("self", "unknown", "run")]
    near = get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"Trainer has no argument {name!r}: {hint}"


def _check_numbers(given: dict[str, Any]) -> None:
    """Refuse early what would show itself late, or never."""
    whole = {
        "max_epochs": -1, "max_steps": -1, "check_val_every_n_epoch": 1, "num_sanity_val_steps": -1,
        "log_every_n_steps": 1, "accumulate_grad_batches": 1,
    }  # fmt: skip
    for name, least in whole.items():
        value = given[name]
        if value is None and name == "max_epochs":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name}={value!r}: it has to be a whole number, at least {least}")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
                 "val_check_interval"):  # fmt: skip
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not math.isfinite(value):
            raise ConfigurationError(
                f"{name}={value!r}: it has to be a number of batches (an int) or a part (0.0 to 1.0)"
            )
        if isinstance(value, float) and value > 1.0:
            raise ConfigurationError(
                f"{name}={value}: a float is a part, at most 1.0; for batches give an int: {int(value)}"
            )
    for name in ("limit_train_batches", "val_check_interval"):
        if given[name] == 0:
            raise ConfigurationError(f"{name} is 0: give 1.0 for all, or an int of at least 1")
    clip = given["gradient_clip_val"]
    if clip is not None and (not isinstance(clip, int | float) or clip < 0):
        raise ConfigurationError(f"gradient_clip_val={clip!r}: it has to be a number of at least 0")


def _check_devices(devices: int | str, launched: int | None) -> None:
    if devices == "auto":
        return
    try:
        count = int(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ConfigurationError(f'devices={devices!r}: it has to be a number of ranks, or "auto"')
    if launched is None and count > 1:
        raise ConfigurationError(
            f"devices={count}, but this script was started alone: start it with "
            f"`everstep launch --nproc-per-node {count} <script>`"
        )
    if launched is not None and count != launched:
        raise ConfigurationError(
            f'devices={count}, but the launcher has started {launched} on this node: give devices="auto", or '
            f"`--nproc-per-node {count}`"
        )


def _strategy(strategy: str | Strategy, world_size: int) -> Strategy:
    if isinstance(strategy, Strategy):
        chosen = strategy
    elif strategy == "auto":
        chosen = DDPStrategy() if world_size > 1 else Strategy()
    elif strategy == "ddp":
        chosen = DDPStrategy()
    else:
        raise ConfigurationError(f'strategy={strategy!r} is not known here: give "auto", "ddp" or a Strategy')
    if world_size > 1 and type(chosen) is Strategy:
        raise ConfigurationError(f'one device cannot train on {world_size} ranks together: give strategy="ddp"')
    return chosen


def _loggers(logger: Logger | Iterable[Logger] | bool, root: Path) -> list[Logger]:
    if logger is True:
        return [CSVLogger(root)]
    if logger is False:
        return []
    return [logger] if isinstance(logger, Logger) else list(logger)


def _check_callbacks(callbacks: list[Callback]) -> None:
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigurationError(
                f"callbacks has a {type(callback).__name__}: every one has to be an everstep Callback"
            )
    keys = [callback.state_key for callback in callbacks if callback.state_dict()]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(f"two callbacks save their state as {key!r}: override state_key in one of them")


def _datamodule_or(loaders: Any, datamodule: LightningDataModule | None) -> tuple[Any, LightningDataModule | None]:
    """A datamodule may stand where loaders do."""
    if isinstance(loaders, LightningDataModule):
        return None, loaders
    if loaders is not None and datamodule is not None:
        raise ConfigurationError("both dataloaders and a datamodule are given: give one of them")
    return loaders, datamodule


def _given(method: str, loaders: Any, model: LightningModule, datamodule: LightningDataModule | None) -> Any:
    if loaders is not None:
        return loaders
    if datamodule is not None:
        found = getattr(datamodule, method)()
        if found is not None:
            return found
    return getattr(model, method)()


def _loader(method: str, loaders: Any, model: LightningModule, datamodule: LightningDataModule | None) -> Any:
    found = _given(method, loaders, model, datamodule)
    if found is None:
        raise ConfigurationError(
            f"there is no {method}: give loaders to the Trainer call, or define {method} in the module or the "
            "datamodule (and return it)"
        )
    return found
