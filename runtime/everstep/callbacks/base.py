"""The base of all callbacks: every hook a no-op. Only those that a class overrides are ever called."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class Callback:
    """Override the hooks you need. The order in which they come is in everstep/trainer/hooks.py."""

    #: It looks at metrics, so its on_train_epoch_end comes after the module's, which may log some.
    monitors = False
    #: It wants `trainer.predictions` to be kept, whatever predict's caller wants.
    needs_predictions = False
    #: Classes of callbacks that it does not go with.
    not_with: "tuple[type[Callback], ...]" = ()

    #: As the module's; set when a Trainer call begins.
    log: Callable[..., None]
    log_dict: Callable[..., None]

    @property
    def state_key(self) -> str:
        """Names this callback's state in a checkpoint; make it unique if two of one class are used."""
        return type(self).__qualname__

    def _generate_state_key(self, **kwargs: Any) -> str:
        """For `state_key`: the class, and what tells this one from others of it."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def state_dict(self) -> dict[str, Any]:
        """What the callback remembers, as tensors and JSON values. Comes back in `load_state_dict` after a resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def on_save_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be saved: the whole of it, with Lightning's keys ("state_dict" …), to be changed or
        added to with tensors and plain data. Called on every rank."""

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """A checkpoint is being loaded, as `on_save_checkpoint` left it."""

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """A Trainer call begins. `stage`: fit, validate, test or predict."""

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """A Trainer call has ended."""

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """A Trainer call ends by an exception, which goes on after this."""

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Everything is set up. On a resume weights and callbacks are restored, optimizers not yet."""

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The last hook of a fit but teardown."""

    def on_sanity_check_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A few batches of validation, before the first step of a fit that does not resume."""

    def on_sanity_check_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """The sanity check has passed."""

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Training begins, or goes on after a resume."""

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Training has ended."""

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Not repeated by a resume in the middle of an epoch."""

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Epoch means are in trainer.callback_metrics."""

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Before training_step."""

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """`outputs`: {"loss": without its graph, divided by accumulate_grad_batches}, with what else was in
        training_step's dict; {} for None. Of several automatic optimizers a list of such."""

    def on_before_zero_grad(self, trainer: "Trainer", pl_module: "LightningModule", optimizer: "Optimizer") -> None:
        """Before gradients are dropped, at the first batch of a window."""

    def on_before_backward(self, trainer: "Trainer", pl_module: "LightningModule", loss: "Tensor") -> None:
        """`loss` as it will be differentiated, weights included."""

    def on_after_backward(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Gradients are there; those of a window's last batch are averaged over the ranks."""

    def on_before_optimizer_step(
        self, trainer: "Trainer", pl_module: "LightningModule", optimizer: "Optimizer"
    ) -> None:
        """Before clipping."""

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A validation begins."""

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A validation has ended."""

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Before the first batch."""

    def on_validation_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """After the last batch. What is logged here counts."""

    def on_validation_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before validation_step."""

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs`: what validation_step returned."""

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A test begins."""

    def on_test_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A test has ended."""

    def on_test_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Before the first batch."""

    def on_test_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """After the last batch. What is logged here counts."""

    def on_test_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before test_step."""

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs`: what test_step returned."""

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A prediction begins."""

    def on_predict_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """A prediction has ended."""

    def on_predict_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Before the first batch."""

    def on_predict_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """After the last batch."""

    def on_predict_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before predict_step."""

    def on_predict_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """`outputs`: what predict_step returned."""
