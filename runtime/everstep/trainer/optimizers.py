"""What `configure_optimizers` may return, made one: an optimizer and its schedulers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from everstep.errors import ConfigurationError
from everstep.module import LightningModule


@dataclass
class SchedulerConfig:
    """A learning-rate scheduler and when it steps."""

    scheduler: LRScheduler
    interval: str = "epoch"  # or "step"
    frequency: int = 1  # every so many of the interval
    monitor: str | None = None  # the metric that ReduceLROnPlateau looks at
    strict: bool = True  # a missing metric is an error
    plateau: bool = field(init=False)

    def __post_init__(self) -> None:
        self.plateau = isinstance(self.scheduler, ReduceLROnPlateau)

    def step(self, metrics: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ConfigurationError: the monitored metric was never logged.
        """
        if not self.plateau:
            self.scheduler.step()
            return
        assert self.monitor is not None
        if self.monitor in metrics:
            self.scheduler.step(float(metrics[self.monitor]))  # type: ignore[arg-type]
        elif self.strict:
            known = ", ".join(sorted(metrics)) or "nothing yet"
            raise ConfigurationError(
                f"ReduceLROnPlateau monitors {self.monitor!r}, which was not logged. Logged so far: {known}. Log it "
                'with self.log, change "monitor", or set "strict": False'
            )


def configure(module: LightningModule) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """The module's optimizer (a list of one) and schedulers.

    Raises:
        ConfigurationError: configure_optimizers is missing or returned something else.
    """
    returned = module.configure_optimizers()
    optimizers, schedulers = _parts(returned, type(module).__name__)
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"{type(module).__name__}.configure_optimizers returned {len(optimizers)} optimizers: automatic "
            "optimisation takes one; give it parameter groups"
        )
    configs = [_config(scheduler) for scheduler in schedulers]
    for config in configs:
        if config.scheduler.optimizer not in optimizers:
            raise ConfigurationError(f"{type(config.scheduler).__name__} is of an optimizer that was not returned")
    return optimizers, configs


def _parts(returned: Any, who: str) -> tuple[list[Optimizer], list[Any]]:
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, Mapping) and isinstance(returned.get("optimizer"), Optimizer):
        _known_keys(returned, ("optimizer", "lr_scheduler"), "configure_optimizers")
        scheduler = returned.get("lr_scheduler")
        return [returned["optimizer"]], [] if scheduler is None else [scheduler]
    if isinstance(returned, list | tuple) and returned:
        first = returned[0]
        if len(returned) == 2 and isinstance(first, list | tuple) and isinstance(returned[1], list | tuple):
            optimizers, schedulers = list(first), list(returned[1])
        elif all(isinstance(item, Mapping) for item in returned):
            parts = [_parts(item, who) for item in returned]
            return [o for p in parts for o in p[0]], [s for p in parts for s in p[1]]
        else:
            optimizers, schedulers = list(returned), []
        if all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
            return optimizers, schedulers
    what = "nothing" if returned is None else f"a {type(returned).__name__}"
    raise ConfigurationError(
        f"{who}.configure_optimizers returned {what}: it has to be an optimizer, a list with one, (optimizers, "
        'schedulers), or {"optimizer": …, "lr_scheduler": …}'
    )


def _config(scheduler: Any) -> SchedulerConfig:
    if isinstance(scheduler, Mapping):
        _known_keys(scheduler, ("scheduler", "interval", "frequency", "monitor", "strict"), "the lr_scheduler dict")
        if "scheduler" not in scheduler:
            raise ConfigurationError('the lr_scheduler dict has no "scheduler"')
        config = SchedulerConfig(**scheduler) if isinstance(scheduler["scheduler"], LRScheduler) else None
    else:
        config = SchedulerConfig(scheduler) if isinstance(scheduler, LRScheduler) else None
    if config is None:
        raise ConfigurationError("a learning-rate scheduler has to be one of torch.optim.lr_scheduler")
    if config.interval not in ("epoch", "step"):
        raise ConfigurationError(f'the lr_scheduler\'s interval is {config.interval!r}: it has to be "epoch" or "step"')
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise ConfigurationError(
            f"the lr_scheduler's frequency is {config.frequency!r}: it has to be a whole number from 1"
        )
    if config.plateau and config.monitor is None:
        raise ConfigurationError(
            'ReduceLROnPlateau needs a metric: return {"optimizer": …, "lr_scheduler": {"scheduler": …, "monitor": '
            '"val_loss"}}'
        )
    return config


def _known_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {list(known)}"
            raise ConfigurationError(f"{where} has the unknown key {key!r}: {hint}")
