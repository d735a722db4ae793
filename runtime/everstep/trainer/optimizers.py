"""What `configure_optimizers` may return, made one: optimizers and their schedulers."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.errors import ConfigurationError
from everstep.module import LightningModule
from everstep.trainer.hooks import overridden, required

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer


@dataclass
class SchedulerConfig:
    """A learning-rate scheduler and when it steps. The fields are the keys of a scheduler dict."""

    scheduler: Any
    interval: str = "epoch"  # or "step"
    frequency: int = 1  # every so many of the interval
    monitor: str | None = None  # the metric that ReduceLROnPlateau looks at
    strict: bool = True  # a missing metric is an error
    name: str | None = None  # under which LearningRateMonitor logs
    reduce_on_plateau: bool = False  # it is stepped with the metric, after validation
    take_step: Callable[[Any, Any], None] = field(default_factory=lambda: _step, repr=False)

    def step(self, metrics: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ConfigurationError: the monitored metric was never logged.
        """
        if not self.reduce_on_plateau:
            self.take_step(self.scheduler, None)
            return
        assert self.monitor is not None
        if self.monitor in metrics:
            self.take_step(self.scheduler, metrics[self.monitor])
        elif self.strict:
            known = ", ".join(sorted(metrics)) or "nothing yet"
            raise ConfigurationError(
                f"ReduceLROnPlateau monitors {self.monitor!r}, which was not logged. Logged so far: {known}. Log it "
                'with self.log, change "monitor", or set "strict": False'
            )


def _step(scheduler: Any, metric: Any) -> None:
    if metric is None:
        scheduler.step()
    else:
        scheduler.step(float(metric))


class NoOptimizer(Optimizer):
    """Of a module whose configure_optimizers returned None: changes nothing."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(0)], {})

    def step(self, closure: Any = None) -> Any:
        return closure() if closure is not None else None


def configure(module: LightningModule, trainer: "Trainer") -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """The module's optimizers and schedulers, as its strategy sets them up.

    Raises:
        ConfigurationError: configure_optimizers is missing or returned something else.
    """
    who = type(module).__name__
    if not overridden(module, "configure_optimizers"):
        raise ConfigurationError(
            f"{who} has no configure_optimizers: define it, and return an optimizer such as "
            "torch.optim.Adam(self.parameters())"
        )
    returned = module.configure_optimizers()
    if returned is None:
        warnings.warn(
            f"{who}.configure_optimizers returned None: nothing is trained. Is a `return optimizer` missing?",
            stacklevel=2,
        )
        returned = NoOptimizer()
    optimizers, schedulers = _parts(returned, who)
    if required(module.training_step) > 2 and not (len(optimizers) > 1 and module.automatic_optimization):
        raise ConfigurationError(
            f"{who}.training_step takes optimizer_idx, which is given only where optimisation is automatic and "
            "configure_optimizers returns several optimizers: take it away"
        )
    custom_step = module.lr_scheduler_step if overridden(module, "lr_scheduler_step") else None
    configs = [_config(scheduler, custom_step, module.automatic_optimization) for scheduler in schedulers]
    for config in configs:
        of = getattr(config.scheduler, "optimizer", None)
        if of is not None and not any(of is optimizer for optimizer in optimizers):
            raise ConfigurationError(f"{type(config.scheduler).__name__} is of an optimizer that was not returned")
    return trainer.strategy.setup_optimizers(module, optimizers), configs


def _parts(returned: Any, who: str) -> tuple[list[Optimizer], list[Any]]:
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping) and isinstance(returned.get("optimizer"), Optimizer):
        returned = _known(returned, ("optimizer", "lr_scheduler", "monitor"), "what configure_optimizers returned")
        scheduler = returned.get("lr_scheduler")
        if scheduler is not None and returned.get("monitor") is not None:  # may stand beside the scheduler as well
            more = scheduler if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
            scheduler = {"monitor": returned["monitor"], **more}
        return [returned["optimizer"]], [] if scheduler is None else [scheduler]
    if isinstance(returned, list | tuple) and returned:
        first = returned[0]
        if len(returned) == 2 and isinstance(first, list | tuple):
            second = returned[1]
            optimizers, schedulers = list(first), list(second) if isinstance(second, list | tuple) else [second]
        elif all(isinstance(item, Mapping) for item in returned):
            parts = [_parts(item, who) for item in returned]
            return [o for p in parts for o in p[0]], [s for p in parts for s in p[1]]
        else:
            optimizers, schedulers = list(returned), []
        if all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
            return optimizers, schedulers
    what = "nothing" if returned is None else f"a {type(returned).__name__}"
    raise ConfigurationError(
        f"{who}.configure_optimizers returned {what}: it has to be an optimizer, a list of them, (optimizers, "
        'schedulers), None, or {"optimizer": …, "lr_scheduler": …}'
    )


def _config(scheduler: Any, custom_step: Callable[[Any, Any], None] | None, automatic: bool) -> SchedulerConfig:
    keys = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    known = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")
    keys = _known(keys, known, "the lr_scheduler dict")
    if "scheduler" not in keys:
        raise ConfigurationError('the lr_scheduler dict has no "scheduler"')
    given = keys["scheduler"]
    if not isinstance(given, LRScheduler):
        stateful = all(hasattr(given, method) for method in ("step", "state_dict", "load_state_dict"))
        if not (stateful and custom_step is not None):
            raise ConfigurationError(
                f"a {type(given).__name__} is none of torch.optim.lr_scheduler: give one of those, or an object with "
                "step, state_dict and load_state_dict, and define lr_scheduler_step(scheduler, metric)"
            )
    keys["reduce_on_plateau"] = keys.get("reduce_on_plateau", False) or isinstance(given, ReduceLROnPlateau)
    config = SchedulerConfig(**keys)
    if custom_step is not None:
        config.take_step = custom_step
    if config.interval not in ("epoch", "step"):
        raise ConfigurationError(f'the lr_scheduler\'s interval is {config.interval!r}: it has to be "epoch" or "step"')
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise ConfigurationError(
            f"the lr_scheduler's frequency is {config.frequency!r}: it has to be a whole number from 1"
        )
    if config.reduce_on_plateau and config.monitor is None and automatic:  # else the module steps it with a value
        raise ConfigurationError(
            'ReduceLROnPlateau needs a metric: return {"optimizer": …, "lr_scheduler": {"scheduler": …, "monitor": '
            '"val_loss"}}'
        )
    return config


def _known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    """Without the keys that nothing reads, of which it warns."""
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {list(known)}"
            warnings.warn(f"{where} has the unknown key {key!r}, which changes nothing: {hint}", stacklevel=2)
    return {key: value for key, value in given.items() if key in known}
