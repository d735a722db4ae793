"""Fine-tuning: parts of a module are frozen, and join training later."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer

Modules = nn.Module | Iterable["Modules"]


class BaseFinetuning(Callback):
    """Override `freeze_before_training` and `finetune_function`; `configure_optimizers` gives the optimizer only what
    requires gradients: `filter(lambda p: p.requires_grad, self.parameters())`.

    A resume finds the optimizers' parameter groups as they were. With several ranks, gradients of what joins later are
    averaged by this callback: DDP has laid out its buckets without them.
    """

    def __init__(self) -> None:
        self._groups: list[dict[str, Any]] = []  # those added: {"optimizer": index, "names": […], "train_bn": …}
        self._late: list[nn.Parameter] = []
        self._trainer: Trainer | None = None

    def freeze_before_training(self, pl_module: "LightningModule") -> None:
        """Freeze what shall not be trained from the beginning: `self.freeze(pl_module.backbone)`."""
        raise NotImplementedError

    def finetune_function(self, pl_module: "LightningModule", epoch: int, optimizer: Optimizer) -> None:
        """An epoch begins: `self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)` at the right one."""
        raise NotImplementedError

    # Tools.

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """The leaves, and whatever has parameters of its own."""
        if isinstance(modules, nn.ModuleDict):
            modules = modules.values()
        if not isinstance(modules, nn.Module):
            return [leaf for part in modules for leaf in BaseFinetuning.flatten_modules(part)]
        return [part for part in modules.modules() if not list(part.children()) or part._parameters]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """Parameters that do, or do not, require gradients. train_bn=False: without those of batch normalisation."""
        for part in BaseFinetuning.flatten_modules(modules):
            if isinstance(part, _BatchNorm) and not train_bn:
                continue
            yield from (p for p in part.parameters(recurse=False) if p.requires_grad == requires_grad)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Gradients for all parameters of the modules, and running statistics for their batch norms."""
        for part in BaseFinetuning.flatten_modules(modules):
            if isinstance(part, _BatchNorm):
                part.track_running_stats = True
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad = True

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """`train_bn`: leave batch normalisation as it is; False: it keeps its statistics, too."""
        for part in BaseFinetuning.flatten_modules(modules):
            if isinstance(part, _BatchNorm):
                if train_bn:
                    BaseFinetuning.make_trainable(part)
                    continue
                part.track_running_stats = False
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad = False

    def unfreeze_and_add_param_group(
        self,
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Let them train, with a learning rate of `lr`, or that of the first group divided by `initial_denom_lr`."""
        self.make_trainable(modules)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        fresh = [p for p in self.filter_params(modules, train_bn=train_bn) if id(p) not in known]
        if not fresh:
            return
        trainer = self._trainer
        assert trainer is not None
        assert trainer.lightning_module is not None
        optimizer.add_param_group(
            {"params": fresh, "lr": optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else lr}
        )
        names = {id(parameter): name for name, parameter in trainer.lightning_module.named_parameters()}
        index = next(i for i, mine in enumerate(trainer.optimizers) if mine is optimizer)
        self._groups.append({"optimizer": index, "names": [names[id(parameter)] for parameter in fresh]})
        self._late += fresh

    # When.

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        self._trainer = trainer
        if stage == "fit":
            self._groups, self._late = [], []
            self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """After a resume the groups are added again, before the optimizers' states are loaded."""
        parameters = dict(pl_module.named_parameters())
        for group in self._groups:
            optimizer = trainer.optimizers[group["optimizer"]]
            chosen = [parameters[name] for name in group["names"]]
            for parameter in chosen:
                parameter.requires_grad = True
            optimizer.add_param_group({"params": chosen, "lr": optimizer.param_groups[0]["lr"]})
            self._late += chosen
            self._followed(trainer, optimizer)

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        for optimizer in trainer.optimizers:
            before = len(optimizer.param_groups)
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            if len(optimizer.param_groups) != before:
                self._followed(trainer, optimizer)

    def on_before_optimizer_step(self, trainer: "Trainer", pl_module: "LightningModule", optimizer: Optimizer) -> None:
        if trainer.world_size > 1:
            for parameter in self._late:
                if parameter.grad is not None:
                    trainer.strategy.reduce(parameter.grad)

    def _followed(self, trainer: "Trainer", optimizer: Optimizer) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer:
                self._follow(config.scheduler, optimizer)

    @staticmethod
    def _follow(scheduler: Any, optimizer: Optimizer) -> None:
        """torch's schedulers remember a rate for each group that was there when they were made."""
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        for name in ("base_lrs", "_last_lr", "min_lrs", "lr_lambdas"):
            values = getattr(scheduler, name, None)
            if isinstance(values, list) and values:
                missing = optimizer.param_groups[len(values) :]
                values += [group["lr"] if name in ("base_lrs", "_last_lr") else values[0] for group in missing]

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        return {"groups": self._groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._groups = list(state_dict["groups"])


class BackboneFinetuning(BaseFinetuning):
    """The module's `backbone` is frozen, and joins at an epoch, with a learning rate that grows up to the others'.

    Args:
        unfreeze_backbone_at_epoch: when it joins.
        lambda_func: epoch -> by what its rate is multiplied then; default: 2.
        backbone_initial_ratio_lr: of the others' rate, when it joins; backbone_initial_lr: that rate itself.
        should_align: when it has come up to the others' rate, it stays theirs.
        train_bn: batch normalisation trains all the time.
        rounding: digits in the verbose output.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = lambda epoch: 2.0,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch, self.lambda_func = unfreeze_backbone_at_epoch, lambda_func
        self.backbone_initial_ratio_lr, self.backbone_initial_lr = backbone_initial_ratio_lr, backbone_initial_lr
        self.should_align, self.initial_denom_lr, self.train_bn = should_align, initial_denom_lr, train_bn
        self.verbose, self.rounding = verbose, rounding
        self.previous_backbone_lr: float | None = None

    def freeze_before_training(self, pl_module: "LightningModule") -> None:
        self.freeze(self._backbone(pl_module), train_bn=self.train_bn)

    def _backbone(self, module: "LightningModule") -> nn.Module:
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ConfigurationError(
                f"BackboneFinetuning needs {type(module).__name__}.backbone, an nn.Module: name it so, or write a "
                "BaseFinetuning of your own"
            )
        return backbone

    def finetune_function(self, pl_module: "LightningModule", epoch: int, optimizer: Optimizer) -> None:
        current = optimizer.param_groups[0]["lr"]
        if epoch == self.unfreeze_backbone_at_epoch:
            rate = self.backbone_initial_lr
            rate = current * self.backbone_initial_ratio_lr if rate is None else rate
            self.previous_backbone_lr = rate
            self.unfreeze_and_add_param_group(
                self._backbone(pl_module), optimizer, rate, self.initial_denom_lr, self.train_bn
            )
        elif epoch > self.unfreeze_backbone_at_epoch and self.previous_backbone_lr is not None:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            if self.should_align and rate > current:
                rate = current
            optimizer.param_groups[-1]["lr"] = self.previous_backbone_lr = rate
        else:
            return
        if self.verbose and self._trainer is not None:
            self._trainer.print(f"BackboneFinetuning: lr {round(current, self.rounding)}, backbone's "
                                f"{round(self.previous_backbone_lr, self.rounding)}")  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
