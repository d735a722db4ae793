"""Fabric: a loop of your own on any hardware, on the same strategies, precisions and accelerators as the Trainer.

fabric = everstep.Fabric(devices=2, precision="bf16-mixed")
fabric.launch()                     # or fabric.launch(train), which starts the ranks itself
model, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(loader)
for batch in loader:
    optimizer.zero_grad()
    fabric.backward(loss(model(batch)))
    optimizer.step()
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from everstep.accelerators import Accelerator
from everstep.checkpoint import ckpt
from everstep.compiled import compiled, uncompiled
from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.module import LightningModule, refuse_group
from everstep.optimizer import WrappedOptimizer
from everstep.precision import Precision
from everstep.sampling.loader import RankPart, Remade, has_positions
from everstep.seed import ensure_seeded, run_seed, seed_everything
from everstep.strategies import Strategy
from everstep.strategies.place import place
from everstep.strategies.rank import Rank
from everstep.strategies.spawn import run_on_ranks


class Fabric(Rank):
    """Arguments as of the Trainer.

    Raises:
        ConfigurationError: a value or a combination cannot work; says what would.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        precision: int | str | Precision | None = None,
        plugins: Any = None,
        callbacks: Any = None,
        loggers: Any = None,
    ) -> None:
        environment = Environment.read()
        ensure_seeded(environment)
        self.strategy = place(environment, accelerator, devices, num_nodes, strategy, precision, plugins)
        self.callbacks = _listed(callbacks)
        self.loggers = _listed(loggers)
        self._launched = False

    # The ranks.

    def launch(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Join the other ranks. With a function: call it with this Fabric and the arguments, and return its result;
        in a script that was started alone with several devices, on ranks that are started for it (rank 0's result).

        Raises:
            ConfigurationError: ranks have to be started, and there is no function for them to call.
        """
        start_method, count = self.strategy.start_method, len(self.strategy.devices)
        if start_method is not None:
            if function is None:
                raise ConfigurationError(
                    f"{count} devices in a script that was started alone: give launch() the function that the ranks "
                    f"are to call, or start the script with `everstep launch --nproc-per-node {count} …`"
                )
            return run_on_ranks(_in_rank, (self, function, args, kwargs), count, start_method)[0]
        self.strategy.connect(Environment.read())
        self._launched = True
        return function(self, *args, **kwargs) if function is not None else None

    @property
    def logger(self) -> Any:
        """The first of `loggers`; None: there is none."""
        return self.loggers[0] if self.loggers else None

    @property
    def device(self) -> torch.device:
        """Of this rank."""
        return self.strategy.root_device

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks. `name`: for whoever reads the script."""
        self.strategy.barrier(name)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Rank `src`'s value (anything that can be pickled, between ranks of one run), on all ranks; a collective."""
        if self.world_size == 1:
            return obj
        box = [obj]
        dist.broadcast_object_list(box, src=src, device=torch.device("cpu"))
        return box[0]

    def all_gather(self, data: Any, group: None = None, sync_grads: bool = False) -> Any:
        """Everybody's tensors, stacked: [world_size, *shape], in dicts, lists and tuples; a collective.

        Args:
            sync_grads: gradients flow back to the ranks that they came from.

        Raises:
            ConfigurationError: a group is given.
        """
        refuse_group(group)
        return _mapped(data, lambda tensor: self.strategy.all_gather(tensor, sync_grads))

    def all_reduce(self, data: Any, group: Any = None, reduce_op: Literal["mean", "sum", "min", "max"] = "mean") -> Any:
        """Tensors as `strategy.reduce` gives them, in dicts, lists and tuples; a collective. The given are kept."""
        return _mapped(data, lambda tensor: self.strategy.reduce(tensor.detach().clone(), group, reduce_op))

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """Rank 0 (`local`: of each node) goes through the block before the others do."""
        first = (self.local_rank if local else self.global_rank) == 0
        if not first:
            self.barrier()
        yield
        if first:
            self.barrier()

    # Model, optimizers, data.

    def setup(
        self, module: nn.Module, *optimizers: Optimizer, scheduler: Any = None, move_to_device: bool = True
    ) -> Any:
        """The module, on its device, sharded or synchronised, in its precision; and the optimizers that go with it.

        Args:
            scheduler: a learning-rate scheduler, which comes back as the last.
            move_to_device: False: the script does that itself, with `to_device`.

        Raises:
            ConfigurationError: `launch` was not called, or the strategy replaces parameters and an optimizer has the
                old ones.
        """
        model = self.setup_module(module, move_to_device)
        module = model.module
        known = {id(parameter) for parameter in module.parameters()}
        for optimizer in optimizers:
            if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
                raise ConfigurationError(
                    f'strategy "{self.strategy.name}" replaces parameters: call fabric.setup_module(module) first, '
                    "then make the optimizer, then fabric.setup_optimizers(optimizer)"
                )
        if not optimizers:
            return model
        made = tuple(map(self._optimizer, self.strategy.setup_optimizers(module, list(optimizers))))
        if isinstance(module, LightningModule):
            module.take_fabric(self, made)
        return (model, *made) if scheduler is None else (model, *made, scheduler)

    def setup_module(self, module: nn.Module, move_to_device: bool = True) -> "FabricModule":
        """As `setup`, for a module without optimizers, or one whose optimizers are made afterwards. A LightningModule
        hears what `call` says, and its `log`, `print`, `all_gather`, `manual_backward` and `optimizers` are this
        Fabric's."""
        if not self._launched and self.strategy.environment.world_size > 1:
            raise ConfigurationError("call fabric.launch() before fabric.setup: the ranks have to know each other")
        self._launched = True
        module = uncompiled(module)
        self.strategy.precision.convert_module(module)
        self.strategy.setup(module, move_to_device)
        if isinstance(module, LightningModule):
            module.take_fabric(self, ())
            if module not in self.callbacks:
                self.callbacks.append(module)
        return FabricModule(module, self.strategy)

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Optimizers whose step goes through the precision; one, or a tuple of several.

        Raises:
            ConfigurationError: the strategy makes others of them, for which it has to know the module.
        """
        if type(self.strategy).setup_optimizers is not Strategy.setup_optimizers:
            raise ConfigurationError(
                f'strategy "{self.strategy.name}" ties optimizers to their module: give both to fabric.setup'
            )
        made = tuple(map(self._optimizer, optimizers))
        return made[0] if len(made) == 1 else made

    def _optimizer(self, optimizer: Optimizer) -> "FabricOptimizer":
        return FabricOptimizer(optimizer, self.strategy.stepping())

    def setup_dataloaders(
        self, *loaders: Any, use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """Loaders that yield this rank's part of the data, on its device; one, or a list of several.

        The order is that of the loader's own sampler under the seed, the same on all ranks; every rank gets the same
        number of batches. `loader.set_epoch(n)` says which epoch comes next; without it they are counted.
        """
        order = int(self.strategy.broadcast(run_seed()))
        made = [
            FabricLoader(loader, self.strategy, order, use_distributed_sampler, move_to_device) for loader in loaders
        ]
        return made[0] if len(made) == 1 else made

    def to_device(self, obj: Any) -> Any:
        """A module, a tensor, or tensors in dicts, lists and tuples, on this rank's device."""
        if isinstance(obj, nn.Module):
            return obj.to(self.device)
        return self.strategy.to_device(obj)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context, for computations outside of a module's forward."""
        return self.strategy.precision.forward_context()

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Tensors that are made inside are in the precision, on this rank's device."""
        return self.init_module()

    # A step.

    def backward(self, tensor: Tensor, *args: Any, model: Any = None, **kwargs: Any) -> None:
        """`tensor.backward(…)`, scaled where the precision needs it. `model`: for whoever reads the script."""
        self.strategy.precision.backward(tensor, *args, **kwargs)

    def clip_gradients(
        self, module: Any, optimizer: Any, clip_val: float | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, error_if_nonfinite: bool = True,
    ) -> Tensor | None:  # fmt: skip
        """Clip the gradients of the optimizer's parameters: each to +-clip_val, or together to a norm of max_norm, and
        return the norm before.

        Raises:
            ConfigurationError: both or none of them are given.
            RuntimeError: the norm is NaN or infinite (`error_if_nonfinite`).
        """
        if (clip_val is None) == (max_norm is None):
            raise ConfigurationError("clip_gradients takes one of clip_val and max_norm")
        inner = optimizer.optimizer if isinstance(optimizer, FabricOptimizer) else optimizer
        self.strategy.precision.unscale(inner)
        if clip_val is not None:
            return self.strategy.clip_gradients(inner, clip_val, "value")
        assert max_norm is not None
        return self.strategy.clip_gradients(inner, max_norm, "norm", norm_type, error_if_nonfinite)

    @contextmanager
    def no_backward_sync(self, module: "FabricModule", enabled: bool = True) -> Iterator[None]:
        """Inside, gradients stay on their rank (accumulation); forward and backward both belong inside."""
        if not enabled:
            yield
            return
        module.synchronise(False)
        try:
            yield
        finally:
            module.synchronise(True)

    # Files.

    def save(
        self, path: str | os.PathLike[str], state: dict[str, Any],
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:  # fmt: skip
        """One file, at a path or a URL, of a dict of modules, optimizers, objects with state_dict, tensors and plain
        values. Rank 0 writes; sharded tensors are brought together first. A collective.

        Args:
            filter: by a key of `state`: (name, value) -> is this entry of its state_dict saved?

        Raises:
            ConfigurationError: the state holds something that is no data, or a filter is for nothing in it; says what.
        """
        data = {key: self._state_of(value) for key, value in state.items()}
        for key, keeps in (filter or {}).items():
            if not isinstance(data.get(key), dict):
                raise ConfigurationError(f"filter has {key!r}, but state has no dict or object with state_dict there")
            data[key] = {name: value for name, value in data[key].items() if keeps(name, value)}
        tree, tensors = ckpt.data_of(self.strategy.gather(data))
        if self.is_global_zero:
            ckpt.write(ckpt.as_place(path), tree, tensors)
        self.barrier()

    def _state_of(self, value: Any) -> Any:
        inner = _inner(value)
        if isinstance(inner, nn.Module):
            return self.strategy.model_state(inner)
        return dict(inner.state_dict()) if hasattr(inner, "state_dict") else inner

    def load(
        self,
        path: str | os.PathLike[str],
        state: dict[str, Any] | None = None,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Put a file's contents back into the objects of `state` (plain values: into the dict itself). Returns the
        rest of the file. Nothing in it is unpickled into anything but data.

        Raises:
            ConfigurationError: there is no such file, or (`strict`) something in `state` is not in it; or weights_only
                is False.
        """
        ckpt.refuse_unpickling(weights_only)
        found: dict[str, Any] = ckpt.read_data(path, "cpu")
        missing = [key for key in state or {} if key not in found]
        if strict and missing:  # before anything is replaced
            raise ConfigurationError(f"{path} has no {missing[0]!r}; it has {sorted(found)}. strict=False leaves it")
        for key, value in list((state or {}).items()):
            assert state is not None
            if key not in found:
                continue
            saved = found.pop(key)
            if isinstance(value, nn.Module):
                self.strategy.load_model_state(_inner(value), saved, strict)
            elif isinstance(value, FabricOptimizer | Optimizer):
                self.strategy.load_optimizer_state(_inner(value), saved)
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(saved)
            else:
                state[key] = saved
        return found

    def load_raw(
        self, path: str | os.PathLike[str], obj: Any, strict: bool = True, weights_only: bool | None = None
    ) -> None:
        """A file that holds the state of one module or optimizer."""
        ckpt.refuse_unpickling(weights_only)
        saved = ckpt.read_data(path, "cpu")
        if isinstance(obj, nn.Module):
            self.strategy.load_model_state(_inner(obj), saved, strict)
        else:
            self.strategy.load_optimizer_state(_inner(obj), saved)

    # Who listens.

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call this method of every callback that has it."""
        for callback in self.callbacks:
            method = getattr(callback, hook_name, None)
            if method is not None:
                method(*args, **kwargs)

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """`log_dict` of one value: a number, or a tensor of one element."""
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """To every logger, on rank 0."""
        if self.is_global_zero and self.loggers:
            numbers = {name: float(value) for name, value in metrics.items()}
            for logger in self.loggers:
                logger.log_metrics(numbers, step)

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool = True, verbose: bool = True) -> int:
        """As `everstep.seed_everything`."""
        return seed_everything(seed, workers, verbose)


#: Methods of a LightningModule that are steps, of any strategy that does something around one.
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FabricModule(nn.Module):
    """A module whose forward goes through precision and strategy. All else is the module's own, its state too.

    On several ranks, its `training_step` and the like go there, too; any other method that calls the module or a layer
    of it is refused: its gradients would stay on their rank. `mark_forward_method` lets it through.
    """

    def __init__(self, module: nn.Module, strategy: Strategy) -> None:
        super().__init__()
        self.module = module
        precision = strategy.precision
        self._convert = None if type(precision).convert_input is Precision.convert_input else precision.convert_input
        self._synchronise = strategy.synchronise_gradients
        self._wrap: Callable[..., Any] = lambda function: strategy.wrap(
            module, precision.wrap(compiled(module, function))
        )
        self._step: Callable[..., Any] = self._wrap(module.forward)
        self._guarded = type(strategy).wrap is not Strategy.wrap  # the strategy has to know of each step
        if self._guarded and isinstance(module, LightningModule):
            for name in _STEPS:
                self.mark_forward_method(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._convert is not None:
            args, kwargs = self._convert(args), self._convert(kwargs)
        return self._step(*args, **kwargs)

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Calls of this method, too, go through precision and strategy. `method`: it, or its name."""
        name = method if isinstance(method, str) else method.__name__
        object.__setattr__(self, name, self._wrap(getattr(self.module, name)))

    def synchronise(self, now: bool) -> None:
        self._synchronise(now, self.module)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(super().__getattr__("module"), name)
        return self._outside(found, name) if self._guarded and inspect.ismethod(found) else found

    def _outside(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A method that may not enter the module past the strategy."""

        def refuse(*_: Any) -> None:
            raise ConfigurationError(
                f"{type(self.module).__name__}.{name}() calls the module past the strategy, which would not share its "
                f'gradients: call model.mark_forward_method("{name}") after fabric.setup'
            )

        @wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as hooks:
                for layer in self.module.modules():
                    hooks.enter_context(layer.register_forward_pre_hook(refuse))
                return method(*args, **kwargs)

        return watched


class FabricOptimizer(WrappedOptimizer):
    """An optimizer whose step goes through precision and device."""


class FabricLoader:
    """This rank's part of a loader, on its device."""

    def __init__(self, loader: Any, strategy: Strategy, run_seed: int, divide: bool, move: bool) -> None:
        divided = divide and has_positions(loader)
        if divide and not divided and strategy.data_world_size > 1 and isinstance(loader, DataLoader):
            raise ConfigurationError(
                f"{strategy.data_world_size} ranks cannot divide this DataLoader (it has its own batches, or an "
                "iterable dataset): let it give each rank its own, and say use_distributed_sampler=False"
            )
        self._loader = RankPart(Remade(loader, run_seed), strategy, "fabric", training=True) if divided else loader
        self._strategy, self._move = strategy, move and strategy.root_device.type != "cpu"
        self._epoch = 0
        self.dataset, self.batch_size = getattr(loader, "dataset", None), getattr(loader, "batch_size", None)
        self.sampler = _Sampler(getattr(loader, "sampler", ()), self)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(self._epoch)
        self._epoch += 1
        batches = iter(self._loader)
        return map(self._strategy.to_device, batches) if self._move else batches


class _Sampler:
    """The user's own, but for set_epoch, which a script calls on every rank to have another order in the next epoch."""

    def __init__(self, sampler: Any, loader: FabricLoader) -> None:
        self._sampler, self._loader = sampler, loader

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def _in_rank(fabric: Fabric, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    fabric.strategy.start_method = None
    return fabric.launch(function, *args, **kwargs)


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Iterable) else [given]


def _mapped(data: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, bool | int | float):
        return function(torch.tensor(data))
    if isinstance(data, dict):
        return {key: _mapped(value, function) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_mapped(value, function) for value in data)
    return data


def _inner(value: Any) -> Any:
    if isinstance(value, FabricModule):
        return value.module
    return value.optimizer if isinstance(value, FabricOptimizer) else value
