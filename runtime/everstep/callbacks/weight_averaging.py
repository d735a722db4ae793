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

    The average begins as the weights do, and the first update takes those of that moment. Validations see the average,
    before the first update too. A checkpoint's "state_dict" is the average, so that `load_from_checkpoint` gives it;
    what training goes on with lies beside it ("current_model_state"). A fit without any update keeps its own weights.

    Args:
        device: where the average is kept; default: where the weights are.
        use_buffers: average buffers as well; False: each update takes them as they are.
        avg_fn: how a new set of weights enters the average; default: the mean of all.
    """

    def __init__(
        self, device: torch.device | str | None = None, use_buffers: bool = True, avg_fn: Average | None = None
    ) -> None:
        self.device = torch.device(device) if device is not None else None
        self.use_buffers = use_buffers
        self.avg_fn: Average = avg_fn or _mean
        self.n_averaged = 0
        self._average: dict[str, Tensor] | None = None  # of the present fit
        self._current: dict[str, Tensor] | None = None  # put aside while the module has the average
        self._latest_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Asked after each optimizer step (`step_idx`, 0 ..) and each epoch (`epoch_idx`, 0 ..); the other is None."""
        return step_idx is not None

    # When.

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        self._average, self.n_averaged, self._latest_step = None, 0, 0

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._average is None:
            self._average = {name: self._kept(value) for name, value in self._weights(pl_module).items()}

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step > self._latest_step and self.should_update(step_idx=step - 1):
            self._latest_step = step
            self._update(pl_module)

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.n_averaged:
            self._put(pl_module)

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if trainer.fitting:
            self._current = {name: value.detach().clone() for name, value in self._weights(pl_module).items()}
            self._put(pl_module)

    @torch.no_grad()
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
            current = value.detach().to(kept.device)
            averaged = self.n_averaged and (self.use_buffers or isinstance(value, torch.nn.Parameter))
            kept.copy_(self.avg_fn(kept, current, self.n_averaged) if averaged else current)
        self.n_averaged += 1

    @torch.no_grad()
    def _put(self, module: "LightningModule") -> None:
        assert self._average is not None
        for name, value in self._weights(module).items():
            value.copy_(self._average[name])

    def _weights(self, module: "LightningModule") -> dict[str, Tensor]:
        """Parameters and buffers, under each name that a checkpoint has for them."""
        parameters = module.named_parameters(remove_duplicate=False)
        return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}

    def _kept(self, value: Tensor) -> Tensor:
        return value.detach().to(self.device, copy=True) if self.device is not None else value.detach().clone()

    # Checkpoints, with Lightning's keys.

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_step = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        if self._average is None:
            return
        current = checkpoint["state_dict"]
        checkpoint["current_model_state"] = current
        checkpoint["state_dict"] = {**current, **{n: v for n, v in self._average.items() if n in current}}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.n_averaged)}

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        current = checkpoint.get("current_model_state")
        if not trainer.fitting or current is None:
            return
        self._average = {name: self._kept(value) for name, value in self._weights(pl_module).items()}
        self.n_averaged = int(checkpoint["averaging_state"]["n_averaged"])
        trainer.strategy.load_model_state(pl_module, current, True)


class EMAWeightAveraging(WeightAveraging):
    """An exponential moving average.

    Args:
        decay: the old average's part in the new.
        update_every_n_steps: optimizer steps between updates.
        update_starting_at_step: none before.
        update_starting_at_epoch: from this epoch on also at the end of each; None: never.
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
        super().__init__(device, use_buffers, lambda average, current, _: decay * average + (1 - decay) * current)
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if epoch_idx is not None:
            return self.update_starting_at_epoch is not None and epoch_idx >= self.update_starting_at_epoch
        if step_idx is None or step_idx < (self.update_starting_at_step or 0):
            return False
        return self.update_every_n_steps > 0 and step_idx % self.update_every_n_steps == 0


def _mean(average: Tensor, current: Tensor, count: int) -> Tensor:
    return average + (current - average) / (count + 1)
