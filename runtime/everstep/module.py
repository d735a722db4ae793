"""LightningModule: a torch module that says how it trains."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from everstep import seed
from everstep.errors import ConfigurationError
from everstep.hparams import Hyperparameters, build, refuse_file
from everstep.metrics.objects import is_collection
from everstep.sampling.combined import mapped
from everstep.strategies.base import moved

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from everstep.callbacks import Callback
    from everstep.fabric import Fabric
    from everstep.trainer import Trainer


class LightningModule(Hyperparameters, nn.Module):
    """Define `training_step` and `configure_optimizers`, and what else you need. The order of hooks is in
    everstep/trainer/hooks.py."""

    #: False: training_step itself does zero_grad, manual_backward and step, with what `optimizers()` gives.
    automatic_optimization: bool = True
    #: An input of `forward`: a tensor, or a tuple or dict of arguments. For summaries, graphs and exports.
    example_input_array: Any = None

    #: False: prepare_data runs on one process of the whole run, not of each node.
    prepare_data_per_node: bool = True
    #: Whether a checkpoint has to have exactly the module's keys.
    strict_loading: bool = True
    #: Properties that TorchScript leaves alone.
    __jit_unused_properties__: ClassVar[list[str]] = [
        "trainer", "current_epoch", "global_step", "global_rank", "local_rank", "logger", "loggers", "device", "dtype",
        "device_mesh", "hparams", "hparams_initial", "on_gpu", "fabric", "_host",
    ]  # fmt: skip

    _trainer: "Trainer | None" = None
    _fabric: "Fabric | None" = None
    _fabric_optimizers: "Sequence[Any]" = ()
    _toggled: "dict[int, AbstractContextManager[None]] | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        seed.ensure_seeded()  # before the first layer draws its weights
        super().__init__(*args, **kwargs)

    @property
    def trainer(self) -> "Trainer":
        """The Trainer of the latest call.

        Raises:
            AttributeError: no Trainer has had this module yet; so `hasattr(module, "trainer")` answers.
        """
        if self._trainer is None:
            raise AttributeError(f"{type(self).__name__} is attached to no Trainer yet")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: "Trainer | None") -> None:
        object.__setattr__(self, "_trainer", trainer)

    @property
    def fabric(self) -> "Fabric | None":
        """The Fabric that has set this module up, for a loop of one's own; None: there is none."""
        return self._fabric

    def take_fabric(self, fabric: "Fabric", optimizers: "Sequence[Any]") -> None:
        """From now on steps log, print, gather and go backward through it. `optimizers`: what `optimizers()` gives."""
        object.__setattr__(self, "_fabric", fabric)
        object.__setattr__(self, "_fabric_optimizers", optimizers)

    @property
    def _host(self) -> "Trainer | Fabric | None":
        """Who runs the steps."""
        return self._fabric or self._trainer

    def __getstate__(self) -> dict[str, Any]:
        """A copy, and what is pickled, has no Trainer and no Fabric."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        hosts = ("_trainer", "_toggled", "_fabric", "_fabric_optimizers", "log")  # log: as compiled.py binds it
        return {name: value for name, value in state.items() if name not in hosts}

    @property
    def current_epoch(self) -> int:
        """Epochs finished, which is the number of the present one, 0 ..; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps finished; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        """Of this process, 0 ..; 0 without a Trainer."""
        return self._host.global_rank if self._host is not None else 0

    @property
    def local_rank(self) -> int:
        """Among those of this node, 0 ..; 0 without a Trainer."""
        return self._host.local_rank if self._host is not None else 0

    @property
    def logger(self) -> Any:
        """The Trainer's first logger, or None."""
        return self._host.logger if self._host is not None else None

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        first = next(self.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def loggers(self) -> list[Any]:
        """The Trainer's loggers."""
        return self._host.loggers if self._host is not None else []

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def on_gpu(self) -> bool:
        """Is the first parameter on a CUDA device?"""
        return self.device.type == "cuda"

    @property
    def device_mesh(self) -> Any:
        """The mesh of a strategy that divides models (FSDP, tensor parallel), for `configure_model`, or None."""
        return getattr(self._host.strategy, "device_mesh", None) if self._host is not None else None

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizer, or a list if there are several. Their `step` goes through precision and hooks, and is counted.

        Args:
            use_pl_optimizer: False: the plain ones of configure_optimizers.
        """
        optimizers: Sequence[Any] = self._fabric_optimizers
        if self._fabric is None:
            optimizers = self.trainer.lightning_optimizers if use_pl_optimizer else self.trainer.optimizers
        return optimizers[0] if len(optimizers) == 1 else list(optimizers)

    def lr_schedulers(self) -> Any:
        """The scheduler, a list of several, or None."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return schedulers[0] if len(schedulers) == 1 else schedulers or None

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0."""
        if self.global_rank == 0:
            print(*args, **kwargs)

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Literal["mean", "sum", "min", "max"] | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Remember a value of one element under `name`. Nothing is fetched from the device until somebody looks.

        A metric object (of everstep.metrics, torchmetrics …) may stand for the value: its step value is what its
        latest forward returned, its epoch value compute() over all ranks; it is reset after the epoch, and kept in
        checkpoints in the middle of one.

        Args:
            value: a number, a tensor of one element, or a metric object that is an attribute of the module.
            prog_bar: show it in the progress bar. logger: send it to the loggers (default).
            on_step: keep this step's value (default in training batches). on_epoch: reduce over the epoch (default
                elsewhere). Both: as name_step and name_epoch.
            reduce_fx: over the epoch; "mean" weighs by samples. Also as torch.mean and so on.
            enable_graph: keep the value's graph in callback_metrics.
            sync_dist: reduce over the ranks as well: epoch values at the epoch's end, a training step's at once (a
                collective for each; an evaluation's stay the rank's own).
            sync_dist_group: has to be None: the ranks are all of the Trainer's.
            add_dataloader_idx: with several evaluation loaders, name each one's values apart (/dataloader_idx_1).
            batch_size: weight in the mean; default: the samples of this batch.
            metric_attribute: the metric object's name in the module, if it is not to be searched.
            rank_zero_only: only rank 0 logs it; other ranks' calls are ignored.

        Without a Trainer it only warns; through a Fabric the value goes to its loggers.

        Raises:
            ConfigurationError: no Trainer call is running, the name is no string, the value has more than one element
                or is of another type, or a name is used twice with different arguments.
        """
        if self._fabric is not None:
            if logger is not False:
                self._fabric.log(name, value)
            return
        if self._trainer is None:  # an unattached module can be called and traced
            warnings.warn(f"{type(self).__name__} has no Trainer: what it logs goes nowhere ({name!r} …)", stacklevel=2)
            return
        if sync_dist_group is not None:
            raise ConfigurationError(
                f"self.log({name!r}): sync_dist_group is not supported: values are reduced over all ranks"
            )
        given = (
            prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, enable_graph, add_dataloader_idx,
            metric_attribute, rank_zero_only,
        )  # fmt: skip
        self._trainer.logs.log(name, value, given, batch_size)

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Literal["mean", "sum", "min", "max"] | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """`log` for each item, with the same arguments. `dictionary` may be a MetricCollection of torchmetrics.

        Raises:
            ConfigurationError: it is no dict; or as of `log`.
        """
        if is_collection(dictionary):
            items = dictionary.items(keep_base=False, copy_state=False)  # type: ignore[call-arg]
        elif isinstance(dictionary, Mapping):
            items = dictionary.items()
        else:
            raise ConfigurationError(
                f"self.log_dict got a {type(dictionary).__name__}: it takes a dict of names and values, such as "
                '{"loss": loss}; self.log(name, value) logs one'
            )
        for name, value in items:
            self.log(
                name, value, prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
                add_dataloader_idx, batch_size, None, rank_zero_only,
            )  # fmt: skip

    def all_gather(self, data: Any, group: None = None, sync_grads: bool = False) -> Any:
        """The tensors and numbers of all ranks, in a dict, list or tuple or not: each of shape (…) becomes
        (world size, …); on one rank it stays as it is.

        Args:
            group: has to be None: the ranks are all of the Trainer's.
            sync_grads: gradients flow back to the ranks that they came from.

        Raises:
            ConfigurationError: a group is given.
        """
        refuse_group(group)
        strategy = (self._fabric or self.trainer).strategy

        def gathered(value: Any) -> Any:
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, device=self.device)
            return strategy.all_gather(tensor, sync_grads) if strategy.world_size > 1 else tensor

        return mapped(data, gathered)

    def freeze(self) -> None:
        """No parameter requires a gradient; evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Every parameter requires a gradient; training mode."""
        self.requires_grad_(True)
        self.train()

    # Manual optimisation.

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """`loss.backward(…)` as the precision and the strategy need it; in a training_step with
        automatic_optimization = False, or through a Fabric."""
        if self._fabric is not None:
            self._fabric.backward(loss, *args, **kwargs)
            return
        self.trainer.optimization.backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: "Optimizer") -> None:
        """From here to `untoggle_optimizer`, of the optimizers' parameters only this one's require gradients."""
        toggled = self._toggled or {}
        toggled[id(optimizer.param_groups)] = toggling = self.toggled_optimizer(optimizer)
        object.__setattr__(self, "_toggled", toggled)
        toggling.__enter__()

    def untoggle_optimizer(self, optimizer: "Optimizer") -> None:
        """As before `toggle_optimizer`."""
        toggling = (self._toggled or {}).pop(id(optimizer.param_groups), None)
        if toggling is not None:
            toggling.__exit__(None, None, None)

    @contextmanager
    def toggled_optimizer(self, optimizer: "Optimizer") -> Iterator[None]:
        """Inside, of the optimizers' parameters only this one's require gradients."""
        from everstep.trainer.optimization import only, parameters_of

        with only(parameters_of(optimizer), [parameters_of(o) for o in self.trainer.optimizers]):
            yield

    def clip_gradients(
        self,
        optimizer: "Optimizer",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    ) -> None:
        """Clip the gradients of the optimizer's parameters to a norm (default) or a value; None, 0: not at all."""
        if gradient_clip_val:
            self.trainer.strategy.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")

    # Checkpoints.

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A module with the weights and hyper-parameters of a file that Everstep or Lightning wrote.

        Args:
            checkpoint_path: path or URL.
            map_location: as torch.load's; default: as saved, where that device is here.
            hparams_file: has to be None: hyper-parameters are in the checkpoint, or are given.
            weights_only: False is refused: nothing is ever unpickled.
            strict: the file has exactly the module's keys; default: the module's `strict_loading`.
            kwargs: arguments of __init__, which win over the file's.

        Raises:
            ConfigurationError: there is no such file, it needs unpickling, an argument of __init__ is missing, or the
                weights do not fit; names the keys.
        """
        from everstep.checkpoint import ckpt
        from everstep.trainer.state import load_weights

        refuse_file(cls, hparams_file)
        ckpt.refuse_unpickling(weights_only)
        checkpoint = ckpt.read(checkpoint_path, map_location)
        module: Self = build(cls, checkpoint, "module", kwargs)
        module.on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        load_weights(module, state, module.strict_loading if strict is None else strict)
        first = next((value for value in state.values() if isinstance(value, Tensor)), None)
        return module if first is None else module.to(first.device)

    # For serving.

    def to_onnx(self, file_path: Any = None, input_sample: Any = None, **kwargs: Any) -> Any:
        """Write an ONNX model of `forward`.

        Args:
            file_path: a path, or a file object for the older exporter; None: only return torch's ONNXProgram.
            input_sample: what `forward` takes; default: `example_input_array`.
            kwargs: of torch.onnx.export; `dynamo=False` takes the older exporter, through TorchScript.

        Raises:
            ConfigurationError: there is no sample, or the onnx packages are not installed.
        """
        from everstep import export

        return export.to_onnx(self, file_path, input_sample, **kwargs)

    def to_torchscript(
        self,
        file_path: str | os.PathLike[str] | None = None,
        method: Literal["script", "trace"] = "script",
        example_inputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`forward` as TorchScript, in evaluation mode; also written to a path or URL, if one is given.

        Args:
            example_inputs: for "trace": what `forward` takes; default: `example_input_array`.

        Raises:
            ConfigurationError: the method is unknown, or "trace" has no example.
        """
        from everstep import export

        return export.to_torchscript(self, file_path, method, example_inputs, **kwargs)

    # What a module defines.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, optimizer_idx]) -> the loss; a dict with the loss under "loss"; or None: the batch adds
        nothing to the gradients (refused on several ranks). With automatic_optimization = False: anything."""
        raise NotImplementedError

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> anything."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> anything."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> the prediction; default: forward(batch)."""
        return self(args[0] if args else kwargs["batch"])

    def configure_optimizers(self) -> Any:
        """One of: an optimizer; a list of them; (optimizers, schedulers), two lists; {"optimizer": …,
        "lr_scheduler": …}, where the latter is a scheduler or {"scheduler", "interval": "epoch"|"step", "frequency",
        "monitor", "strict", "name"}; a list of such dicts; None, for a fit that trains nothing.

        Several optimizers, automatically: for each batch, and each optimizer in turn, training_step runs with only that
        optimizer's parameters requiring gradients, then backward, and at the end of the window its step. A
        training_step that takes `optimizer_idx` is told which one. Each step counts in global_step.
        """
        return None

    def configure_model(self) -> None:
        """Make layers here that are too large to be made in full on one device. Called in each Trainer call, in every
        process, after `setup`: do nothing if they are there already."""

    def configure_callbacks(self) -> "Callback | list[Callback]":
        """Callbacks for Trainer calls with this module. They take the place of the Trainer's own of the same class."""
        return []

    def train_dataloader(self) -> Any:
        """A DataLoader for fit."""

    def val_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for validation."""

    def test_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for test."""

    def predict_dataloader(self) -> Any:
        """A DataLoader, or a list of them, for predict."""

    def prepare_data(self) -> None:
        """Download, tokenize …: on one process of each node, before `setup`."""

    # Steps of the loop that may be done in another way. They are called only where they are overridden.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step. `optimizer_closure` does training_step, zero_grad, backward and clipping: `optimizer.step` has
        to get it, or it has to be called."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: "Optimizer") -> None:
        """Drop the gradients of the window before."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: "Optimizer",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    ) -> None:
        """Clip, or not. The arguments are the Trainer's."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler. `metric`: what a ReduceLROnPlateau monitors, None for others."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device. Default: everything in dicts, lists and tuples that has `to`."""
        return moved(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, changed or not, as hooks and steps will get it."""
        return batch

    # The hooks.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be saved: the whole of it, with Lightning's keys ("state_dict" …), to be changed or
        added to with tensors and plain data. Called on every rank."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be loaded, as `on_save_checkpoint` left it. Called before the weights are."""

    def setup(self, stage: str) -> None:
        """A Trainer call begins, in every process. `stage`: fit, validate, test or predict."""

    def teardown(self, stage: str) -> None:
        """A Trainer call has ended."""

    def on_fit_start(self) -> None:
        """Everything is set up. On a resume weights and callbacks are restored, optimizers not yet."""

    def on_fit_end(self) -> None:
        """The last hook of a fit but teardown."""

    def on_train_start(self) -> None:
        """Training begins, or goes on after a resume."""

    def on_train_end(self) -> None:
        """Training has ended."""

    def on_train_epoch_start(self) -> None:
        """Not repeated by a resume in the middle of an epoch."""

    def on_train_epoch_end(self) -> None:
        """Epoch means are in trainer.callback_metrics."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Before training_step. Returning -1 leaves out the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """`outputs`: {"loss": without its graph, divided by accumulate_grad_batches}, with what else was in
        training_step's dict; {} for None."""

    def on_before_zero_grad(self, optimizer: "Optimizer") -> None:
        """Before gradients are dropped, at the first batch of a window."""

    def on_before_backward(self, loss: Tensor) -> None:
        """`loss` as it will be differentiated, weights included."""

    def on_after_backward(self) -> None:
        """Gradients are there; those of a window's last batch are averaged over the ranks."""

    def on_before_optimizer_step(self, optimizer: "Optimizer") -> None:
        """Before clipping."""

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation in a fit: drop gradients, for memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Before a validation: modules to evaluation mode."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """After a validation. Default: each module to the mode that it had before."""
        self.train()

    def on_test_model_eval(self) -> None:
        """Before a test: modules to evaluation mode."""
        self.eval()

    def on_test_model_train(self) -> None:
        """After a test. Default: each module to the mode that it had before."""
        self.train()

    def on_predict_model_eval(self) -> None:
        """Before a prediction: modules to evaluation mode."""
        self.eval()

    def on_validation_start(self) -> None:
        """A validation begins."""

    def on_validation_end(self) -> None:
        """A validation has ended."""

    def on_validation_epoch_start(self) -> None:
        """Before the first batch."""

    def on_validation_epoch_end(self) -> None:
        """After the last batch. What is logged here counts."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before validation_step."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`outputs`: what validation_step returned."""

    def on_test_start(self) -> None:
        """A test begins."""

    def on_test_end(self) -> None:
        """A test has ended."""

    def on_test_epoch_start(self) -> None:
        """Before the first batch."""

    def on_test_epoch_end(self) -> None:
        """After the last batch. What is logged here counts."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before test_step."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`outputs`: what test_step returned."""

    def on_predict_start(self) -> None:
        """A prediction begins."""

    def on_predict_end(self) -> None:
        """A prediction has ended."""

    def on_predict_epoch_start(self) -> None:
        """Before the first batch."""

    def on_predict_epoch_end(self) -> None:
        """After the last batch."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Before predict_step."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`outputs`: what predict_step returned."""


def refuse_group(group: Any) -> None:
    """
    Raises:
        ConfigurationError: it is for some of the ranks only.
    """
    if group is not None:
        raise ConfigurationError(
            "all_gather(group=…) is not supported: it gathers from all ranks; for some of them call "
            "torch.distributed.all_gather"
        )
