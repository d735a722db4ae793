"""What `self.log` was told. Values stay on the device until somebody looks: a logger at a log step, the bar …"""

import json
import math
from typing import Any

import torch
from torch import Tensor

from everstep.errors import ConfigurationError
from everstep.loggers.base import Logger
from everstep.strategies import Strategy

_REDUCTIONS = ("mean", "sum", "min", "max")
_EPOCH_VALUE = torch.float64  # sums of many small numbers


class Logs:
    """Of one Trainer. `mode` is set by the loops: whether a value is by default of the step or of the epoch."""

    def __init__(self, strategy: Strategy, loggers: list[Logger]) -> None:
        self.strategy = strategy
        self.loggers = loggers
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics: dict[str, float] = {}
        self.progress_bar_metrics: dict[str, Tensor] = {}
        self.mode: bool | None = None  # True: on_step by default, False: on_epoch, None: no call is running
        self.evaluating = False
        self.samples = 1  # of the present batch: the default weight
        self.suffix = ""  # of the present dataloader, if there are several
        self._named: dict[str, _Named] = {}
        self._step: dict[str, _Named] = {}  # logged in the present step and meant for the loggers

    def log(
        self,
        name: str,
        value: Tensor | float,
        prog_bar: bool,
        logger: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: str,
        sync_dist: bool,
        batch_size: int | None,
    ) -> None:
        mode = self.mode
        if mode is None:
            raise ConfigurationError(f"self.log({name!r}) outside of a Trainer call: it belongs in a hook or a *_step")
        if on_step is None:
            on_step = mode
        if on_epoch is None:
            on_epoch = not mode
        if self.suffix:
            name += self.suffix
        options = (prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist)
        named = self._named.get(name)
        if named is None or named.options != options:
            named = self._introduce(name, value, options)
        value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        if on_step:
            named.latest, named.samples = value, self.samples
            self.callback_metrics[name] = value
            if on_epoch:
                self.callback_metrics[named.step_name] = value
            if prog_bar:
                self.progress_bar_metrics[named.step_name] = value
            if logger:
                self._step[named.step_name] = named
        if on_epoch:
            named.add(value, self.samples if batch_size is None or self.samples == 0 else batch_size)

    def _introduce(self, name: str, value: Any, options: tuple[Any, ...]) -> "_Named":
        known = self._named.get(name)
        if known is not None:
            raise ConfigurationError(
                f"self.log({name!r}) is called with different arguments in one epoch: {known.options} and {options} "
                "(prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist); give one of the values another name"
            )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ConfigurationError(
                f"self.log({name!r}) got a tensor of shape {tuple(value.shape)}: log one number, such as its mean()"
            )
        if not isinstance(value, Tensor | float | int):
            raise ConfigurationError(
                f"self.log({name!r}) got a {type(value).__name__}: log a number or a tensor of one"
            )
        if options[4] not in _REDUCTIONS:
            raise ConfigurationError(f"self.log({name!r}): reduce_fx is {options[4]!r}, not one of {list(_REDUCTIONS)}")
        if not (options[2] or options[3]):
            raise ConfigurationError(
                f"self.log({name!r}): on_step and on_epoch are both False, so it would log nothing"
            )
        self._named[name] = named = _Named(name, options)
        return named

    # Steps of a training epoch, batches of an evaluation.

    def begin_step(self, samples: int) -> None:
        self.samples = samples
        if self._step:
            self._step.clear()

    def send_step(self, step: int, epoch: int) -> None:
        """Give the loggers what the present step has logged. A collective if any of it is to be synchronised."""
        if not self._step:
            return
        values = {name: named.latest for name, named in self._step.items()}
        shared = [name for name, named in self._step.items() if named.sync]
        if shared and self.strategy.world_size > 1 and self.mode:
            for name in shared:
                values[name] = self._over_ranks(self._step[name])
                self.callback_metrics[name] = values[name]
        self._send({name: float(value) for name, value in values.items()}, step, epoch)

    def _over_ranks(self, named: "_Named") -> Tensor:
        value = named.latest.to(_EPOCH_VALUE).reshape(1)
        if named.reduction == "mean":
            total = self.strategy.reduce(torch.cat([value * named.samples, value.new_tensor([float(named.samples)])]))
            return (total[0] / total[1]).float()
        return self.strategy.reduce(value.clone(), named.reduction)[0].float()

    # Epochs.

    def reduce_epoch(self) -> dict[str, Tensor]:
        """Epoch values under their plain names, also for callbacks and the bar. A collective if synchronised."""
        self._agree_on_names()
        values: dict[str, Tensor] = {}
        for name, named in self._named.items():
            if named.on_epoch:
                value = named.reduced(self.strategy)
                if value is None:
                    continue
                values[name] = self.callback_metrics[name] = value
                if named.on_step:
                    self.callback_metrics[named.epoch_name] = value
                if named.prog_bar:
                    self.progress_bar_metrics[named.epoch_name] = value
        return values

    def send_epoch(self, values: dict[str, Tensor], step: int, epoch: int) -> None:
        """Give the loggers epoch values that `reduce_epoch` has returned."""
        sent = {self._named[n].epoch_name: float(v) for n, v in values.items() if self._named[n].logger}
        if sent:
            self._send(sent, step, epoch)

    def begin_epoch(self) -> None:
        self._named = {}
        self._step = {}

    def begin_evaluation(self) -> "dict[str, _Named]":
        """Keep an evaluation's values apart from those of the epoch around it. Give the result to `end_evaluation`."""
        outer = self._named
        self.evaluating = True
        self.begin_epoch()
        return outer

    def end_evaluation(self, outer: "dict[str, _Named]") -> None:
        self._named, self._step, self.suffix = outer, {}, ""
        self.evaluating = False

    def _agree_on_names(self) -> None:
        """A rank that got no batch of a small evaluation has logged nothing: it learns the names from rank 0."""
        if self.strategy.world_size == 1 or self.strategy.all_true(bool(self._named)):
            return
        text = json.dumps([(named.name, named.options) for named in self._named.values()])
        for name, options in json.loads(self.strategy.broadcast(text)):
            self._named.setdefault(name, _Named(name, tuple(options)))

    def _send(self, metrics: dict[str, float], step: int, epoch: int) -> None:
        self.logged_metrics.update(metrics)
        for logger in self.loggers:
            logger.log_metrics({**metrics, "epoch": epoch}, step)

    # Checkpoints: means of a half-finished epoch.

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {"options": list(n.options), "value": n.value, "weight": n.weight}
            for name, n in self._named.items()
            if n.value is not None
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, saved in state.items():
            named = self._named[name] = _Named(name, tuple(saved["options"]))
            named.value, named.weight = saved["value"], saved["weight"]


class _Named:
    """One name of `self.log`: its arguments, its latest value and what it has come to in this epoch."""

    __slots__ = ("epoch_name", "latest", "logger", "name", "on_epoch", "on_step", "options", "prog_bar", "reduction",
                 "samples", "step_name", "sync", "value", "weight")  # fmt: skip

    def __init__(self, name: str, options: tuple[Any, ...]) -> None:
        self.name = name
        self.options = options
        self.prog_bar, self.logger, self.on_step, self.on_epoch, self.reduction, self.sync = options
        forked = self.on_step and self.on_epoch
        base, slash, loader = name.partition("/dataloader_idx_")
        self.step_name = f"{base}_step{slash}{loader}" if forked else name
        self.epoch_name = f"{base}_epoch{slash}{loader}" if forked else name
        self.latest: Tensor = torch.tensor(math.nan)
        self.samples = 1
        self.value: Tensor | None = None
        self.weight = 0.0

    def add(self, value: Tensor, samples: int) -> None:
        if samples == 0:
            return  # a repeated sample that only keeps the ranks in step
        self.weight += samples
        if self.value is None:
            self.value = value.to(_EPOCH_VALUE, copy=True).reshape(())
            if self.reduction == "mean":
                self.value *= samples
        elif self.reduction == "mean":
            self.value.add_(value.reshape(()), alpha=samples)
        elif self.reduction == "sum":
            self.value.add_(value.reshape(()))
        else:
            torch_function = torch.minimum if self.reduction == "min" else torch.maximum
            self.value = torch_function(self.value, value.reshape(()))

    def reduced(self, strategy: Strategy) -> Tensor | None:
        """Over the epoch, and over the ranks if asked for. None: nobody has logged it."""
        neutral = {"min": math.inf, "max": -math.inf}.get(self.reduction, 0.0)
        value = self.value.clone() if self.value is not None else torch.tensor(neutral, dtype=_EPOCH_VALUE)
        weight = self.weight
        if self.sync and strategy.world_size > 1:
            if self.reduction in ("mean", "sum"):
                both = strategy.reduce(torch.stack([value, value.new_tensor(weight)]))
                value, weight = both[0], float(both[1])
            else:
                value = strategy.reduce(value.reshape(1), self.reduction)[0]
                weight = 1.0
        if weight == 0:
            return None
        return (value / weight if self.reduction == "mean" else value).float()
