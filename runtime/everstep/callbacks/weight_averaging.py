"""A second set of weights, the average of those of training: used in validation, and what the fit leaves behind."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everstep.callbacks.base import Callback

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer

#: (average, current, how many are in the average already) -> the new average, all tensors of one shape.
Average = Callable[[Tensor, Tensor, int], Tensor]


class WeightAveraging(Callback):
    """The plain mean of the weights after each optimizer step that `should_update` names; override it to choose.

    Validations see the average. A checkpoint's "state_dict" is the average, so that `load_from_checkpoint` gives it;
    what training goes on with lies beside it ("current_model_state").

    Args:
        device: where the average is kept; default: where the weights are.
        use_buffers: average floating-point buffers as well; False, and all others: as they are.
        avg_fn: how a new set of weights enters the average; default: the mean of all.
    """

    def __init__(
        self, device: torch.device | str | None = None, use_buffers: bool = True, avg_fn: Average | None = None
    ) -> None:
        self.device = torch.device(device) if device is not None else None
        self.use_buffers = use_buffers
        self.avg_fn: Average = avg_fn or _mean
        self.n_averaged = 0
        self._average: dict[str, Tensor] | None = None
        self._current: dict[str, Tensor] | None = None  # put aside while the module has the average
        self._latest_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Asked after each optimizer step (`step_idx`, 0 ..) and each epoch (`epoch_idx`, 0 ..); the other is None."""
        return step_idx is not None

    # When.

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._latest_step = trainer.global_step
        if self._average is None:
            self._average = {name: self._kept(value) for name, value in self._weights(pl_module).items()}

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_step:
            self._latest_step = trainer.global_step
            if self.should_update(step_idx=trainer.global_step - 1):
                self._update(pl_module)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.n_averaged:
            self._put(pl_module)
            self._current = None

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.n_averaged and trainer.fitting:
            self._current = {name: value.clone() for name, value in self._weights(pl_module).items()}
            self._put(pl_module)

    def on_validation_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._current is not None:
            for name, value in self._weights(pl_module).items():
                value.copy_(self._current[name])
            self._current = None

    # What.

    @torch.no_grad()
    def _update(self, module: "LightningModule") -> None:
        assert self._average is not None
        for name, value in self._weights(module).items():
            kept = self._average[name]
            averaged = value.is_floating_point() and (self.use_buffers or isinstance(value, torch.nn.Parameter))
            if averaged and self.n_averaged:
                kept.copy_(self.avg_fn(kept, value.detach().to(kept.device), self.n_averaged))
            else:
                kept.copy_(value.detach())
        self.n_averaged += 1

    @torch.no_grad()
    def _put(self, module: "LightningModule") -> None:
        assert self._average is not None
        for name, value in self._weights(module).items():
            value.copy_(self._average[name])

    def _weights(self, module: "LightningModule") -> dict[str, Tensor]:
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def _kept(self, value: Tensor) -> Tensor:
        return value.detach().to(self.device, copy=True) if self.device is not None else value.detach().clone()

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        return {"n_averaged": self.n_averaged} if self._average is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n_averaged = state_dict["n_averaged"]

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        if self._average is None or not self.n_averaged or not trainer.fitting:
            return
        current = checkpoint["state_dict"]
        checkpoint["current_model_state"] = current
        checkpoint["state_dict"] = {**current, **{n: v for n, v in self._average.items() if n in current}}

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        current = checkpoint.get("current_model_state")
        if not trainer.fitting or current is None:
            return
        self._average = {name: self._kept(value) for name, value in self._weights(pl_module).items()}
        trainer.strategy.load_model_state(pl_module, current, True)


class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average.

    Args:
        decay: the old average's part in the new.
        update_every_n_steps: optimizer steps between updates.
        update_starting_at_step, update_starting_at_epoch: none before; the first update takes the weights as they are.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        super().__init__(device, use_buffers, lambda average, current, count: average.lerp(current, 1 - decay))
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch
        self._epoch_reached = update_starting_at_epoch is None

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        first = self.update_starting_at_epoch
        self._epoch_reached = first is None or trainer.current_epoch >= first

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        super().on_train_start(trainer, pl_module)
        self.on_train_epoch_start(trainer, pl_module)  # a resume in the middle of an epoch has none

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None or not self._epoch_reached:
            return False
        return step_idx >= (self.update_starting_at_step or 0) and step_idx % self.update_every_n_steps == 0


def _mean(average: Tensor, current: Tensor, count: int) -> Tensor:
    return average.lerp(current, 1 / (count + 1))
