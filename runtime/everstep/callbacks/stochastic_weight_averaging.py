"""Stochastic weight averaging: a constant learning rate towards the end, and the mean of the epochs' weights."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR

from everstep.callbacks.base import Callback
from everstep.callbacks.weight_averaging import Average, WeightAveraging
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class StochasticWeightAveraging(WeightAveraging):
    """From `swa_epoch_start` on the learning rate goes to `swa_lrs` and stays there, and as each epoch begins the
    weights enter the mean, which is what the fit leaves behind (also one that is stopped early). Batch normalisation
    then gets its statistics anew, in one pass over the training data without gradients; Lightning makes that an epoch
    more and, at its end, one more step with the gradients of the batch before it. Validations see the weights of
    training.

    Args:
        swa_lrs: of all parameter groups, or one each.
        swa_epoch_start: the first epoch of it, counted from 1 (an int), or that as a part of max_epochs (a float).
        annealing_epochs, annealing_strategy: how the learning rate gets there: "cos" or "linear".
        avg_fn: (average, current, count) -> the new average; default: the mean.
        device: where the average is kept; default: where the weights are.
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Average | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(device, use_buffers=False, avg_fn=avg_fn)
        rates = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates):
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_lrs={swa_lrs!r}): give a positive float, or a list"
            )
        part = isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1
        if not part and not (isinstance(swa_epoch_start, int) and swa_epoch_start >= 1):
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_epoch_start={swa_epoch_start!r}): give an epoch from 1 (an int), or a "
                "part of max_epochs (a float from 0.0 to 1.0)"
            )
        self.swa_lrs, self.swa_epoch_start = swa_lrs, swa_epoch_start
        self.annealing_epochs, self.annealing_strategy = annealing_epochs, annealing_strategy
        self._start = 0
        self._began = False

    not_with = (WeightAveraging,)

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._began = False
        if isinstance(self.swa_epoch_start, int):
            first = self.swa_epoch_start
        elif trainer.max_epochs < 0:
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_epoch_start={self.swa_epoch_start}) is a part of max_epochs, which is "
                "not given: give max_epochs, or an epoch (an int)"
            )
        else:
            first = int(trainer.max_epochs * self.swa_epoch_start)
        self._start = max(first - 1, 0)  # as current_epoch counts

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return False  # neither after a step nor at an epoch's end

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise ConfigurationError(
                f"StochasticWeightAveraging goes with one optimizer and at most one scheduler, not with "
                f"{len(trainer.optimizers)} and {len(trainer.lr_scheduler_configs)}"
            )
        super().on_fit_start(trainer, pl_module)
        if self._began:  # a resume: before the schedulers' states are loaded
            self._begin(trainer)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if not self._began and trainer.current_epoch >= self._start:
            self._begin(trainer)
        if self._began:
            self._update(pl_module)

    def _weights(self, module: "LightningModule") -> dict[str, Tensor]:
        return dict(module.named_parameters())  # buffers stay those of training

    def _begin(self, trainer: "Trainer") -> None:
        """SWA's own scheduler takes the place of the module's."""
        from everstep.trainer.optimizers import SchedulerConfig

        self._began = True
        optimizer = trainer.optimizers[0]
        rates: Any = self.swa_lrs if isinstance(self.swa_lrs, list) else [self.swa_lrs] * len(optimizer.param_groups)
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            group["initial_lr"] = rate
        # These two are Lightning's, to the number.
        last = trainer.max_epochs if self.annealing_strategy == "cos" else -1
        scheduler = SWALR(optimizer, rates, self.annealing_epochs, self.annealing_strategy, last)
        trainer.lr_scheduler_configs[:] = [SchedulerConfig(scheduler)]

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Not the average: its statistics of batch normalisation are not there yet."""

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        super().on_train_end(trainer, pl_module)
        layers = [part for part in pl_module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        if self.n_averaged and layers:
            self._renew_statistics(trainer, pl_module, layers)

    def _renew_statistics(self, trainer: "Trainer", module: "LightningModule", layers: list[_BatchNorm]) -> None:
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean of all batches
        with torch.no_grad():
            trainer.each_training_batch(module.training_step)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """The weights in a checkpoint are those of training; the average is in this callback's state."""

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        Callback.on_load_checkpoint(self, trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"n_averaged": self.n_averaged, "began": self._began}
        return {**state, "average": dict(self._average)} if self._average is not None and self._began else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_averaged = state_dict["n_averaged"]
        self._average = state_dict.get("average")
        self._began = state_dict["began"]
