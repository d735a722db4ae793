"""What `self.log` was told. Values stay on the device until somebody looks: a logger at a log step, the bar …"""

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from everstep.errors import ConfigurationError
from everstep.loggers.base import Logger
from everstep.metrics import objects as metric_objects
from everstep.strategies import Strategy

_REDUCTIONS = ("mean", "sum", "min", "max")
_EPOCH_VALUE = torch.float64  # sums of many small numbers


class Arguments(NamedTuple):
    """Of `self.log`, beside name, value and batch_size: as they were written, and with its defaults."""

    prog_bar: bool = False
    logger: bool | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    reduce_fx: Any = "mean"
    sync_dist: bool = False
    enable_graph: bool = False
    add_dataloader_idx: bool = True
    metric_attribute: str | None = None
    rank_zero_only: bool = False


class Options(NamedTuple):
    """What they come to: one name has the same in a whole epoch."""

    prog_bar: bool
    logger: bool
    on_step: bool
    on_epoch: bool
    reduce_fx: str  # one of _REDUCTIONS
    sync_dist: bool


class Logs:
    """Of one Trainer. `mode` is set by the loops: whether a value is by default of the step or of the epoch."""

    def __init__(self, strategy: Strategy, loggers: list[Logger]) -> None:
        self.strategy = strategy
        self.loggers = loggers
        self.callback_metrics: dict[str, Tensor] = {}
        self.logged_metrics: dict[str, Tensor] = {}
        self.sent: dict[str, float] = {}  # the latest of what went to the loggers, as numbers
        self.progress_bar_metrics: dict[str, Tensor] = {}
        self.mode: bool | None = None  # True: on_step by default, False: on_epoch, None: nothing can be logged
        self.samples = 1  # of the present batch: the default weight
        self.suffix = ""  # of the present dataloader, if there are several
        self.names_of_loaders: dict[str, set[str]] = {}  # by suffix: what the present evaluation has logged of each
        self._named: dict[str, _Named] = {}
        self._step: dict[str, _Named] = {}  # logged in the present step and meant for the loggers
        self._undo: dict[str, Any] = {}  # states of metric objects before a repeated sample
        self.module: nn.Module | None = None  # of the present call: metric objects are found in it by their name

    def log(self, name: str, value: Any, given: tuple[Any, ...], batch_size: int | None = None) -> None:
        """`given`: the other arguments, as `Arguments` has them. They are looked into only when they are new."""
        mode = self.mode
        if mode is None:
            raise ConfigurationError(
                f"self.log({name!r}) belongs to no epoch here: call it in a *_step, or in a hook from on_train_start "
                "(on_validation_start, on_test_start) to on_*_epoch_end. Elsewhere give a logger its values: "
                "self.logger.log_metrics({…})"
            )
        if self.suffix:
            name = self._of_loader(name, Arguments(*given))
        named = self._named.get(name)
        if named is None or named.given != given or named.mode is not mode:
            arguments = Arguments(*given)
            if arguments.rank_zero_only and self.strategy.rank != 0:
                return
            named = self._introduce(name, value, arguments, mode)
        options = named.options
        if named.metric is not None:
            value = self._metric_value(named, value)
            if value is None or not options.on_step:
                return
        elif type(value) is not Tensor:
            value = _number(name, value)
        if value.dim():
            value = _without_dimensions(name, value)
        if value.dtype is not torch.float:
            value = value.to(torch.promote_types(value.dtype, torch.float))
        kept = value
        value = value.detach()
        weight = self.samples if batch_size is None or self.samples == 0 else batch_size
        named.latest = value
        if options.on_step:
            shown = value
            if named.shares_steps:
                named.latest = kept = shown = self._over_ranks(options.reduce_fx, value, weight)
            self.callback_metrics[name] = kept if named.keeps_graph else shown
            if options.on_epoch and mode:
                self.callback_metrics[named.step_name] = shown
            if options.prog_bar:
                self.progress_bar_metrics[named.step_name] = shown
            if options.logger:
                self._step[named.step_name] = named
        if options.on_epoch and named.metric is None:  # a metric object gathers by itself
            named.add(value, weight)

    def _of_loader(self, name: str, arguments: Arguments) -> str:
        """What is logged while one of several loaders is read is of that loader, and by default named after it."""
        _check_name(name)
        if arguments.add_dataloader_idx:
            name += self.suffix
        self.names_of_loaders.setdefault(self.suffix, set()).add(name)
        return name

    def _metric_value(self, named: "_Named", metric: Any) -> Tensor | None:
        """What a metric object says of this step. What it has gathered from a repeated sample is taken back."""
        if metric is not named.metric:
            raise ConfigurationError(
                f"self.log({named.name!r}) was given two metric objects in one epoch: give each a name of its own"
            )
        if self.samples == 0:
            before = self._undo.get(named.name)
            if before is None:
                metric.reset()
            else:
                metric_objects.load_state(metric, before)
        named.done = None
        value = metric_objects.step_value(metric)
        if value is not None and named.options.on_step and not (isinstance(value, Tensor) and value.numel() == 1):
            raise ConfigurationError(
                f"self.log({named.name!r}): {type(metric).__name__} gives more than one number in a step: log it with "
                "on_step=False and compute() it in on_*_epoch_end, or log one number of it"
            )
        return value

    def _introduce(self, name: str, value: Any, arguments: Arguments, mode: bool) -> "_Named":
        """A name that is new, or comes with other arguments than before."""
        _check_name(name)
        if arguments.add_dataloader_idx and "/dataloader_idx_" in name.removesuffix(self.suffix):
            raise ConfigurationError(
                f"self.log({name!r}): several loaders' values are told apart by /dataloader_idx_… anyway: leave it out "
                "of the name, or give add_dataloader_idx=False"
            )
        metric = metric_objects.is_metric(value)
        if metric_objects.is_collection(value):
            raise ConfigurationError(f"self.log({name!r}) got a MetricCollection: self.log_dict(collection) logs it")
        if isinstance(value, Tensor):
            _without_dimensions(name, value)
        if not (isinstance(value, Tensor | Real) or metric):
            raise ConfigurationError(
                f"self.log({name!r}) got a {type(value).__name__}: log a number, a tensor of one, or a metric object"
            )
        reduction = _reduction(arguments.reduce_fx)
        if reduction is None:
            raise ConfigurationError(
                f"self.log({name!r}): reduce_fx is {arguments.reduce_fx!r}, not one of {list(_REDUCTIONS)}. For "
                "anything else log a metric object (a subclass of everstep.metrics.Metric)"
            )
        options = Options(
            prog_bar=arguments.prog_bar,
            logger=arguments.logger is not False,
            on_step=mode if arguments.on_step is None else arguments.on_step,
            on_epoch=not mode if arguments.on_epoch is None else arguments.on_epoch,
            reduce_fx=reduction,
            sync_dist=arguments.sync_dist and not arguments.rank_zero_only,
        )
        if not (options.on_step or options.on_epoch):
            raise ConfigurationError(
                f"self.log({name!r}): on_step and on_epoch are both False, so it would log nothing"
            )
        known = self._named.get(name)
        if known is not None and known.given is None:  # the epoch's steps are over, this is of a hook at its end
            if known.metric is not None and value is not known.metric:
                known.metric.reset()
            known = None
        if known is None:
            self._named[name] = known = _Named(name, options)
            if metric:
                known.metric, known.attribute = value, arguments.metric_attribute or self._attribute_of(name, value)
        else:
            _check_same(known, options, metric)
        known.given, known.mode, known.keeps_graph = arguments, mode, arguments.enable_graph
        # sync_dist: the ranks share the values of training steps at once, those of epochs when they are reduced. Those
        # of an evaluation's batches stay the rank's own: not every rank has as many.
        known.shares_steps = options.sync_dist and mode and not metric and self.strategy.world_size > 1
        return known

    def _attribute_of(self, name: str, metric: Any) -> str:
        """Under which name the module holds a metric object: it has to be found again after a resume."""
        paths = dict(self.module.named_modules()) if self.module is not None else {}
        for path, part in paths.items():
            if part is metric:
                return str(path)
        raise ConfigurationError(
            f"self.log({name!r}): the {type(metric).__name__} is no attribute of the module, so it would not move to "
            "its device and not come back after a resume. Make it one in __init__ (in a list: an nn.ModuleList)"
        )

    def forget(self) -> None:
        """The latest values, as a Trainer call begins: what is seen then is of this call."""
        for seen in (self.callback_metrics, self.logged_metrics, self.progress_bar_metrics, self.sent):
            seen.clear()

    def numbers(self) -> dict[str, float]:
        """What callbacks see, for a record of the call."""
        return {name: float(value.detach()) for name, value in self.callback_metrics.items()}

    # Steps of a training epoch, batches of an evaluation.

    def begin_step(self, samples: int) -> None:
        self.samples = samples
        if self._step:
            self._step.clear()
        if samples == 0:
            metrics = {name: named.metric for name, named in self._named.items() if named.metric is not None}
            self._undo = {name: metric_objects.state(metric) for name, metric in metrics.items()}

    def send_step(self, step: int, epoch: int) -> None:
        """Give the loggers what the present step has logged."""
        if self._step:
            self.send(fetched({name: named.latest for name, named in self._step.items()}), step, epoch)

    def _over_ranks(self, reduction: str, value: Tensor, weight: float) -> Tensor:
        """A step's value, the same on every rank before anything decides by it. Nobody waits for the device."""
        wide = value.to(_EPOCH_VALUE, copy=True)
        if reduction == "mean":
            wide *= weight
        elif reduction == "sum" and weight == 0:
            wide.zero_()  # a repeated sample
        total, weights = _shared(self.strategy, reduction, wide, weight)
        return (total / weights if reduction == "mean" else total).to(value.dtype)

    # Epochs.

    def reduce_epoch(self) -> dict[str, Tensor]:
        """Epoch values under their plain names, also for callbacks and the bar. A collective if synchronised."""
        self._agree_on_names()
        values: dict[str, Tensor] = {}
        for name, named in self._named.items():
            named.given = None  # what is logged by this name from now on is a value of its own
            if named.options.on_epoch:
                if named.done is None:
                    named.done = named.reduced(self.strategy)
                value = named.done
                if value is None:
                    continue
                values[name] = self.callback_metrics[name] = value
                if named.options.on_step:
                    self.callback_metrics[named.epoch_name] = value
                if named.options.logger:
                    self.logged_metrics[named.epoch_name] = value
                if named.options.prog_bar:
                    self.progress_bar_metrics[named.epoch_name] = value
        return values

    def named_for_people(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Epoch values as numbers, under the names that loggers give them too."""
        return fetched({self._named[name].epoch_name: value for name, value in values.items()})

    def send_epoch(self, values: dict[str, Tensor], step: int, epoch: int) -> None:
        """Give the loggers epoch values that `reduce_epoch` has returned."""
        sent = {self._named[n].epoch_name: v for n, v in values.items() if self._named[n].options.logger}
        if sent:
            self.send(fetched(sent), step, epoch)

    def begin_epoch(self) -> None:
        self._named = {}
        self._step = {}

    def end_epoch(self) -> None:
        """Metric objects begin anew."""
        self.logged_metrics = self.latest()
        for named in self._named.values():
            if named.metric is not None:
                named.metric.reset()
        self.begin_epoch()

    def begin_evaluation(self) -> "dict[str, _Named]":
        """Keep an evaluation's values apart from those of the epoch around it. Give the result to `end_evaluation`."""
        outer = self._named
        self.logged_metrics = self.latest()
        self.names_of_loaders = {}
        self.begin_epoch()
        return outer

    def end_evaluation(self, outer: "dict[str, _Named]") -> None:
        self.end_epoch()
        self._named, self._step, self.suffix = outer, {}, ""

    def _agree_on_names(self) -> None:
        """A rank that got no batch of a small evaluation has logged nothing: it learns the names from rank 0."""
        if self.strategy.world_size == 1 or self.strategy.all_true(bool(self._named)):
            return
        known = [[named.name, list(named.options), named.attribute] for named in self._named.values()]
        for name, options, attribute in self.strategy.broadcast(known):
            if name not in self._named:
                self._remember(name, Options(*options), attribute)

    def _remember(self, name: str, options: Options, attribute: str | None) -> "_Named":
        """A name that this rank has not logged itself."""
        named = self._named[name] = _Named(name, options)
        if attribute is not None and self.module is not None:
            named.metric, named.attribute = self.module.get_submodule(attribute), attribute
        return named

    def send(self, metrics: dict[str, float], step: int, epoch: int) -> None:
        """Give the loggers values as they are, past all reductions. On rank 0; elsewhere there is no logger."""
        self.sent.update(metrics)
        for logger in self.loggers:
            logger.log_metrics({**metrics, "epoch": epoch}, step)
            if not logger.saves_itself:
                logger.save()

    # What others see.

    def latest(self) -> dict[str, Tensor]:
        """Of everything that is meant for the loggers, the present step included, whether they get it or not."""
        return {**self.logged_metrics, **{name: named.latest for name, named in self._step.items()}}

    # Checkpoints: means of a half-finished epoch.

    def state_dict(self) -> dict[str, Any]:
        return {
            name: {"options": list(n.options), "value": n.value, "weight": n.weight}
            if n.metric is None
            else {"options": list(n.options), "metric": n.attribute, "state": metric_objects.state(n.metric)}
            for name, n in self._named.items()
            if n.value is not None or n.metric is not None
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, saved in state.items():
            named = self._remember(name, Options(*saved["options"]), saved.get("metric"))
            if named.metric is not None:
                metric_objects.load_state(named.metric, saved["state"])
            else:
                named.value, named.weight = saved["value"], saved["weight"]


class Silent(Logs):
    """Of barebones=True: whatever is logged is dropped."""

    def log(self, *args: Any, **kwargs: Any) -> None: ...


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ConfigurationError(f"self.log({name!r}, …): the name has to be a string, such as {f'{name}'!r}")


def _check_same(known: "_Named", options: Options, metric: bool) -> None:
    """
    Raises:
        ConfigurationError: a name stands for two things.
    """
    before = {**known.options._asdict(), "a metric object": known.metric is not None}
    now = {**options._asdict(), "a metric object": metric}
    differing = ", ".join(f"{what} {before[what]} and {now[what]}" for what in now if before[what] != now[what])
    if differing:
        raise ConfigurationError(
            f"self.log({known.name!r}) is called with different arguments in one epoch: {differing}. Give one of the "
            "values another name"
        )


def _number(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Real):  # NumPy's scalars are too
        return torch.tensor(float(value))
    raise ConfigurationError(f"self.log({name!r}) got a {type(value).__name__} where it got a number before")


def _without_dimensions(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ConfigurationError(
            f"self.log({name!r}) got a tensor of shape {tuple(value.shape)}: log one number, such as its mean()"
        )
    return value.reshape(())


def _reduction(reduce_fx: Any) -> str | None:
    """By its name; torch.mean and its like, min, max and sum are known as functions too."""
    name = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", None)
    name = {"amin": "min", "amax": "max", "nanmean": None, "avg": "mean"}.get(str(name), name)
    return name if name in _REDUCTIONS else None


def fetched(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers, in one go: from an accelerator each one alone would wait for all that is under way there."""
    if len(values) < 2 or all(value.device.type == "cpu" for value in values.values()):
        return {name: float(value) for name, value in values.items()}
    devices = {value.device for value in values.values()}
    if len(devices) > 1:
        groups = [{n: v for n, v in values.items() if v.device == device} for device in devices]
        found = {name: number for group in groups for name, number in fetched(group).items()}
        return {name: found[name] for name in values}
    numbers = torch.stack([value.detach().reshape(()).to(_EPOCH_VALUE) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


class _Named:
    """One name of `self.log`: its arguments, its latest value and what it has come to in this epoch."""

    __slots__ = (
        "attribute", "done", "epoch_name", "given", "keeps_graph", "latest", "metric", "mode", "name", "options",
        "shares_steps", "step_name", "value", "weight",
    )  # fmt: skip

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self.options = options
        self.given: tuple[Any, ...] | None = ()  # the latest Arguments; None: what comes now is a value of its own
        self.mode: bool | None = None  # in which they were given
        self.keeps_graph = False
        self.shares_steps = False  # with the other ranks, at once
        forked = options.on_step and options.on_epoch
        base, slash, loader = name.partition("/dataloader_idx_")
        self.step_name = f"{base}_step{slash}{loader}" if forked else name
        self.epoch_name = f"{base}_epoch{slash}{loader}" if forked else name
        self.latest: Tensor = torch.tensor(math.nan)
        self.value: Tensor | None = None
        self.weight = 0.0
        self.done: Tensor | None = None  # the epoch's value, once it was asked for
        self.metric: Any = None  # an object that gathers by itself
        self.attribute: str | None = None  # where the module has it

    def add(self, value: Tensor, samples: int) -> None:
        if samples == 0:
            return  # a repeated sample that only keeps the ranks in step
        self.done = None
        reduction = self.options.reduce_fx
        self.weight += samples
        if self.value is None:
            self.value = value.to(_EPOCH_VALUE, copy=True).reshape(())
            if reduction == "mean":
                self.value *= samples
        elif reduction == "mean":
            self.value.add_(value.reshape(()), alpha=samples)
        elif reduction == "sum":
            self.value.add_(value.reshape(()))
        else:
            torch_function = torch.minimum if reduction == "min" else torch.maximum
            self.value = torch_function(self.value, value.reshape(()))

    def reduced(self, strategy: Strategy) -> Tensor | None:
        """Over the epoch, and over the ranks if asked for. None: nobody has logged it."""
        if self.metric is not None:
            value = metric_objects.epoch_value(self.metric, strategy)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ConfigurationError(
                    f"self.log({self.name!r}): compute() of {type(self.metric).__name__} gives more than one number. "
                    "Call it in on_*_epoch_end, log its numbers one by one, and reset() it there"
                )
            return value.detach().reshape(()).float()
        reduction, weight = self.options.reduce_fx, self.weight
        neutral = {"min": math.inf, "max": -math.inf}.get(reduction, 0.0)
        value = self.value.clone() if self.value is not None else torch.tensor(neutral, dtype=_EPOCH_VALUE)
        if self.options.sync_dist and strategy.world_size > 1:
            value, weights = _shared(strategy, reduction, value, weight)
            weight = float(weights)
        if weight == 0:
            return None
        return (value / weight if reduction == "mean" else value).to(self.latest.dtype)


def _shared(strategy: Strategy, reduction: str, value: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Sums, or the least or greatest value, over the ranks, and their weights. `value`: of a mean times its weight."""
    if reduction in ("mean", "sum"):
        total, weights = strategy.reduce(torch.stack([value, torch.full_like(value, weight)]), reduce_op="sum")
        return total, weights
    return strategy.reduce(value.reshape(1), reduce_op=reduction)[0], torch.ones_like(value)
