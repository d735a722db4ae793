"""One process, one device: every collective is the identity."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from everstep.accelerators import Accelerator
from everstep.environment import Environment
from everstep.precision import Precision
from everstep.strategies.materialise import materialise
from everstep.strategies.missing import INSTEAD


class Strategy:
    """The seam between the loop and the ranks. A strategy overrides what differs from a single device."""

    name = "single_device"
    #: Evaluations may run under torch.inference_mode; False: under no_grad.
    inference_mode = True
    #: Each backward shares its gradients with the other ranks, however many there are in a step (`share_gradients`).
    shares_each_backward = False
    #: "spawn" or "fork": Trainer calls start their ranks themselves (spawn.py).
    start_method: str | None = None
    #: Batch norm takes its statistics over all ranks.
    sync_batchnorm = False

    def __init__(self) -> None:
        self.environment = Environment()
        self.accelerator = Accelerator()
        self.devices = [0]  # indices that this node's ranks use, by local rank
        self.precision = Precision()
        self.model: Any = None  # that a Trainer trains or evaluates with it, and its optimizers
        self.optimizers: list[Optimizer] = []

    def connect(self, environment: Environment) -> None:
        """Join the other ranks. Called at the start of each Trainer call; the first does the work."""
        self.environment = environment

    def __getattr__(self, name: str) -> Any:
        """
        Raises:
            AttributeError: always, so that hasattr is False; says what to use instead of an attribute of Lightning's.
        """
        if name in INSTEAD:
            raise AttributeError(f"Everstep's strategies have no {name}; use instead: {INSTEAD[name]}")
        return object.__getattribute__(self, name)  # raises what a property has raised, or that there is none

    @property
    def lightning_module(self) -> Any:
        """The module of the Trainer's present call, or the last."""
        return self.model

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's name of `precision`."""
        return self.precision

    @property
    def rank(self) -> int:
        """Of this process in the run, 0 …."""
        return 0

    @property
    def world_size(self) -> int:
        """Processes in the run."""
        return 1

    @property
    def global_rank(self) -> int:
        """Lightning's name of `rank`."""
        return self.rank

    @property
    def local_rank(self) -> int:
        """Among those of this node."""
        return self.environment.local_rank

    @property
    def is_global_zero(self) -> bool:
        """Is this rank 0?"""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of a global batch this rank takes, 0 ..; ranks that share one model's layers share one part."""
        return self.rank

    @property
    def data_world_size(self) -> int:
        """Into how many parts a global batch is divided."""
        return self.world_size

    @property
    def root_device(self) -> torch.device:
        """Of this rank."""
        return self.accelerator.device(self.devices[self.environment.local_rank % len(self.devices)])

    def setup(self, module: nn.Module, move_to_device: bool = True) -> None:
        """Bring the module to its device, or shard it. Called before `configure_optimizers`, and before evaluations.

        Args:
            move_to_device: False: whoever calls does that; a strategy that shards puts the shards on the device anyway.
        """
        if not move_to_device:
            return
        materialise(module, self.root_device)
        if self.root_device.type != "cpu":
            module.to(self.root_device)

    def setup_optimizers(self, module: nn.Module, optimizers: list[Optimizer]) -> list[Optimizer]:
        """The optimizers that train: those of `configure_optimizers`, or what the strategy makes of them."""
        return optimizers

    def stepping(self) -> Callable[..., Any]:
        """(optimizer, closure) -> anything: an optimizer's step through the precision, as the device needs it."""
        step, flush = self.precision.step, self.accelerator.flush
        if type(self.accelerator).flush is Accelerator.flush:
            return step

        def flushed(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            result = step(optimizer, closure)
            flush()
            return result

        return flushed

    def to_device(self, batch: Any) -> Any:
        """A batch on this rank's device. Not called where the device is the CPU and this not overridden."""
        return moved(batch, self.root_device)

    def clip_gradients(
        self, optimizer: Optimizer, value: float, algorithm: Literal["norm", "value"] = "norm",
        norm_type: float = 2.0, error_if_nonfinite: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """Clip the gradients of the optimizer's parameters together, in place. Returns their norm before, if by "norm".

        Raises:
            RuntimeError: the norm is NaN or infinite (`error_if_nonfinite`).
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if algorithm == "norm":
            return torch.nn.utils.clip_grad_norm_(parameters, value, norm_type, error_if_nonfinite)
        torch.nn.utils.clip_grad_value_(parameters, value)
        return None

    def model_state(self, module: nn.Module) -> dict[str, Any]:
        """The module's state as the run's checkpoints take it: its own tensors, or this rank's shards (DTensors)."""
        return dict(module.state_dict())

    def load_model_state(self, module: nn.Module, state: dict[str, Any], strict: bool = True) -> None:
        """
        Raises:
            RuntimeError: the state is of another module.
        """
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """`state`: of whole tensors, as checkpoints give it."""
        optimizer.load_state_dict(state)

    def gather(self, tree: Any) -> Any:
        """The tree for one-file checkpoints: on rank 0 with whole tensors on the CPU where it has shards, on the others
        as it was. A collective."""
        return tree

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        """The training step through whatever synchronises gradients."""
        return step

    def wrap_evaluation(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        """A validation, test or predict step through whatever brings its parameters together."""
        return step

    def synchronise_gradients(self, now: bool, module: nn.Module | None = None) -> None:
        """Said before a forward whose gradients differ from the previous one's in being shared with the other ranks.

        Args:
            module: of several that were wrapped; None: all of them.
        """

    def without_sync(self) -> AbstractContextManager[None]:
        """Inside, gradients stay on their rank."""
        return nullcontext()

    def share_gradients(self, module: nn.Module) -> None:
        """Average the gradients that there are over the ranks, of parameters that require one. For steps that have
        several backwards, or backwards of a part of the module: `wrap` cannot know when they are complete."""

    def align_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers (running statistics) of rank 0, so that evaluation is the same everywhere."""

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str = "mean") -> Tensor:
        """Over all ranks, in place; a collective.

        Args:
            group: of torch.distributed; default: all ranks that have samples of their own.
            reduce_op: "mean" (or "avg"; of whole numbers without its fraction), "sum", "min" or "max".
        """
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Does every rank say so, or (`all=False`) any? A collective."""
        return self.all_true(decision) if all else not self.all_true(not decision)

    def all_gather(self, tensor: Tensor, sync_grads: bool = False) -> Tensor:
        """Everybody's tensor of this shape, stacked: [world_size, *shape]; a collective.

        Args:
            sync_grads: it can be differentiated.
        """
        return tensor[None]

    def all_true(self, flag: bool) -> bool:
        """Does every rank say so? A collective."""
        return self.all_agree(flag)()

    def all_agree(self, flag: bool) -> Callable[[], bool]:
        """As `all_true`, but asks only: waiting for the others begins with the call of what is returned."""
        return lambda: flag

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """Rank `src`'s value, on all ranks: numbers, strings, tensors and None, in dicts and lists; a collective.

        Raises:
            ConfigurationError: it is something else, or has something else in it; says where.
        """
        return value

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks. `name`: for whoever reads the script."""

    def unwrap(self) -> None:
        """A fit has ended: let go of what `wrap` made."""


def moved(batch: Any, device: torch.device) -> Any:
    """The same batch with everything that has `to` on the device: tensors and such, in dicts, lists and tuples."""
    if hasattr(batch, "to"):
        return batch.to(device, non_blocking=True) if isinstance(batch, Tensor) else batch.to(device)
    if isinstance(batch, dict):
        return type(batch)({key: moved(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
