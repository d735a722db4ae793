"""LightningModule: a torch module that says how it trains."""

import os
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from everstep import seed
from everstep.hparams import Hyperparameters, build

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from everstep.trainer import Trainer


class LightningModule(Hyperparameters, nn.Module):
    """Define `training_step` and `configure_optimizers`, and what else you need. The order of hooks is in
    everstep/trainer/hooks.py."""

    _trainer: "Trainer | None" = None
    #: Whether a checkpoint has to have exactly the module's keys.
    strict_loading: bool = True

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
    def current_epoch(self) -> int:
        """Epochs finished, which is the number of the present one, 0 ..; 0 without a Trainer."""
        return self._trainer.current_epoch if self._trainer is not None else 0

    @property
    def global_step(self) -> int:
        """Optimizer steps finished; 0 without a Trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    @property
    def global_rank(self) -> int:
        return self._trainer.global_rank if self._trainer is not None else 0

    @property
    def local_rank(self) -> int:
        return self._trainer.local_rank if self._trainer is not None else 0

    @property
    def logger(self) -> Any:
        """The Trainer's first logger, or None."""
        return self._trainer.logger if self._trainer is not None else None

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        first = next(self.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    def optimizers(self) -> Any:
        """The optimizer, or a list if there are several."""
        optimizers = self.trainer.optimizers
        return optimizers[0] if len(optimizers) == 1 else optimizers

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
        value: Tensor | float,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Literal["mean", "sum", "min", "max"] = "mean",
        sync_dist: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Remember a value of one element under `name`. Nothing is fetched from the device until somebody looks.

        Args:
            prog_bar: show it in the progress bar. logger: send it to the loggers.
            on_step: keep this step's value (default in training batches). on_epoch: reduce over the epoch (default
                elsewhere). Both: as name_step and name_epoch.
            reduce_fx: over the epoch; "mean" weighs by samples.
            sync_dist: reduce over the ranks as well: epoch values at the epoch's end, step values when they are logged.
            batch_size: weight in the mean; default: the samples of this batch.

        Raises:
            ConfigurationError: no Trainer call is running, the value has more than one element, or a name is used
                twice with different arguments.
        """
        if self._trainer is None:
            return  # an unattached module can be called and traced
        self._trainer.logs.log(name, value, prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, batch_size)

    def log_dict(self, dictionary: dict[str, Tensor | float], **kwargs: Any) -> None:
        """`log` for each item, with the same arguments."""
        for name, value in dictionary.items():
            self.log(name, value, **kwargs)

    # Checkpoints.

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: Any = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A module with the weights and hyper-parameters of a file that Everstep or Lightning wrote.

        Args:
            checkpoint_path: path or URL.
            map_location: as torch.load's; default: as saved, where that device is here.
            strict: the file has exactly the module's keys; default: the module's `strict_loading`.
            kwargs: arguments of __init__, which win over the file's.

        Raises:
            ConfigurationError: there is no such file, it needs unpickling, an argument of __init__ is missing, or the
                weights do not fit; names the keys.
        """
        from everstep.checkpoint import ckpt
        from everstep.trainer.state import load_weights

        checkpoint = ckpt.read(checkpoint_path, map_location)
        module: Self = build(cls, checkpoint, "module", kwargs)
        module.on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        load_weights(module, state, module.strict_loading if strict is None else strict)
        first = next((value for value in state.values() if isinstance(value, Tensor)), None)
        return module if first is None else module.to(first.device)

    # What a module defines.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx) -> the loss, or a dict with the loss under "loss"."""
        raise NotImplementedError

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> anything."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> anything."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """(batch, batch_idx[, dataloader_idx]) -> the prediction; default: forward(batch)."""
        return self(args[0] if args else kwargs["batch"])

    def configure_optimizers(self) -> Any:
        """An optimizer; a list with one; (optimizers, schedulers); or {"optimizer": …, "lr_scheduler": …}, where the
        latter is a scheduler or {"scheduler", "interval": "epoch"|"step", "frequency", "monitor", "strict"}."""
        return None

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
        """Everything is set up, nothing restored yet."""

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before training_step."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """`outputs`: what training_step returned."""

    def on_before_zero_grad(self, optimizer: "Optimizer") -> None:
        """Before gradients are dropped, at the first batch of a window."""

    def on_before_backward(self, loss: Tensor) -> None:
        """`loss` as it will be differentiated, weights included."""

    def on_after_backward(self) -> None:
        """Gradients are there; those of a window's last batch are averaged over the ranks."""

    def on_before_optimizer_step(self, optimizer: "Optimizer") -> None:
        """Before clipping."""

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
