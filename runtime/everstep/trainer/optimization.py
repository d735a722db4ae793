"""How a batch becomes gradients, and gradients a step: automatically, or as the module's own training_step does it.

`Automatic` is one closure (training_step, zero_grad, backward) around which optimizers step; a module that overrides
`optimizer_step`, or an optimizer that may want gradients again or the loss (LBFGS, any that is not torch's), gets the
closure handed in. `Manual` only calls training_step; the optimizers that the module steps there are
`LightningOptimizer`s, which keep count.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from everstep.errors import ConfigurationError
from everstep.optimizer import WrappedOptimizer
from everstep.precision import Precision
from everstep.strategies import Strategy
from everstep.trainer.hooks import Hooks, overridden

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer.trainer import Trainer

_ZERO_GRAD = Optimizer.zero_grad


class Automatic:
    """Forward, backward and optimizer step without the module's doing. Made once per fit."""

    def __init__(self, trainer: "Trainer", module: "LightningModule", hooks: Hooks, step: Callable[..., Any]) -> None:
        """`step`: training_step, (batch, batch_idx[, optimizer_idx]) -> what it returned."""
        self.trainer, self.module, self.step = trainer, module, step
        self.optimizers = list(enumerate(trainer.optimizers))
        precision, profiler = trainer.precision_plugin, trainer.profiler
        self._before_zero_grad = hooks["on_before_zero_grad"]
        self._before_backward, self._after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
        self._before_step = hooks["on_before_optimizer_step"]
        self._zero_grad = module.optimizer_zero_grad if overridden(module, "optimizer_zero_grad") else None
        backward = partial(_by_module, module, precision) if overridden(module, "backward") else precision.backward
        self._backward = profiler.timed("backward", backward)
        self._unscale = precision.unscale if type(precision).unscale is not Precision.unscale else None
        self._clip = clipping(trainer, module)
        self._optimizer_step = profiler.timed("optimizer_step", trainer.strategy.stepping())
        self._passes_index = (
            len(self.optimizers) > 1 and "optimizer_idx" in inspect.signature(module.training_step).parameters
        )
        self._custom_step = overridden(module, "optimizer_step")
        self._by_closure = [self._custom_step or _uses_closure(optimizer) for _, optimizer in self.optimizers]
        self._parameters = [parameters_of(optimizer) for _, optimizer in self.optimizers]
        self._alone = len(self.optimizers) == 1 and not self._by_closure[0]
        self._strategy = trainer.strategy
        # One optimizer's gradients are averaged over the ranks by the backward of a window's last batch. Those of
        # several, and of manual backwards, after it, where the strategy does not do so in each backward.
        self._in_backward = len(self.optimizers) == 1
        self._synchronises = True
        if not self._in_backward:
            _leave_gradients_apart(self._strategy)
        self._unready = bool(self._unscale or self._before_step or self._clip) or len(self.optimizers) > 1
        self._warned = False
        self.loss: tuple[Tensor, float] | None = None  # the latest, and by what it was multiplied

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            f"{type(self.module).__name__} calls manual_backward, but its optimisation is automatic: return the loss "
            "from training_step, or set self.automatic_optimization = False in __init__"
        )

    def run(self, batch: Any, index: int, opens: bool, closes: bool, scale: float) -> Any:
        """One batch of a window of batches that share an optimizer step. Returns what training_step returned, of
        several optimizers a list.

        Args:
            opens, closes: is it the window's first, its last batch? scale: of its loss.
        """
        if self._in_backward and self._synchronises is not closes:
            self._synchronises = closes
            self._strategy.synchronise_gradients(closes)
        if self._alone:
            optimizer = self.optimizers[0][1]
            outputs = self._gradients(optimizer, (batch, index), opens, scale)
            if closes:
                self._step(optimizer)
            return outputs
        outputs = []
        for number, optimizer in self.optimizers:
            with only(self._parameters[number], self._parameters):
                arguments = (batch, index, number) if self._passes_index else (batch, index)
                if closes and self._by_closure[number]:
                    outputs.append(self._closure_step(number, optimizer, arguments, opens, scale))
                else:
                    outputs.append(self._gradients(optimizer, arguments, opens, scale))
                    if closes:
                        self._step(optimizer)
        return outputs if len(outputs) > 1 else outputs[0]

    def _closure_step(
        self, number: int, optimizer: Optimizer, arguments: tuple[Any, ...], opens: bool, scale: float
    ) -> Any:
        """The optimizer, or the module's optimizer_step, decides when the gradients are computed."""
        outputs = None

        def closure() -> Tensor | None:
            nonlocal outputs
            with torch.enable_grad():
                outputs = self._gradients(optimizer, arguments, opens, scale)
            self._ready(optimizer)
            return self.loss[0].detach() if self.loss is not None else None

        trainer = self.trainer
        if self._custom_step:
            stepping = trainer.lightning_optimizers[number]
            stepping.uses(self._optimizer_step, counts=False)
            self.module.optimizer_step(trainer.current_epoch, arguments[1], stepping, closure)
        else:
            self._optimizer_step(optimizer, closure)
        trainer.global_step += 1
        return outputs

    def _step(self, optimizer: Optimizer) -> None:
        if self._unready:
            self._ready(optimizer)
        self._optimizer_step(optimizer)
        self.trainer.global_step += 1

    def _gradients(self, optimizer: Optimizer, arguments: tuple[Any, ...], opens: bool, scale: float) -> Any:
        outputs = self.step(*arguments)
        loss = outputs if type(outputs) is Tensor else self._loss_of(outputs)
        if opens:
            for listener in self._before_zero_grad:
                listener(optimizer)
            if self._zero_grad is None:
                clear_gradients(optimizer)
            else:
                self._zero_grad(self.trainer.current_epoch, arguments[1], optimizer)
        if loss is None:
            return outputs
        if scale != 1.0:
            loss = loss * scale
        self.loss = loss, scale
        for listener in self._before_backward:
            listener(loss)
        try:
            self._backward(loss)
        except RuntimeError:
            self._check_differentiable(loss)
            raise
        for listener in self._after_backward:
            listener()
        return outputs

    def _check_differentiable(self, loss: Tensor) -> None:
        """
        Raises:
            ConfigurationError: there is no differentiating this loss.
        """
        who = f"{type(self.module).__name__}.training_step returned a loss"
        if loss.numel() != 1:
            raise ConfigurationError(
                f"{who} of shape {tuple(loss.shape)}: it has to be one number, such as its mean()"
            ) from None
        if loss.is_complex():
            raise ConfigurationError(
                f"{who} of {loss.dtype}: gradients are of a real number, such as its abs() or its real part (.real)"
            ) from None
        if not loss.requires_grad:
            raise ConfigurationError(
                f"{who} that no parameter has a part in: it was detached (item(), detach(), no_grad, a number made "
                "anew), or every parameter is frozen. To leave a batch out return None"
            ) from None

    def _ready(self, optimizer: Optimizer) -> None:
        """The window's gradients are complete."""
        if len(self.optimizers) > 1:
            self._strategy.share_gradients(self.module)
        if self._unscale is not None:
            self._unscale(optimizer)
        for listener in self._before_step:
            listener(optimizer)
        if self._clip is not None:
            self._clip(optimizer)

    def _loss_of(self, outputs: Any) -> Tensor | None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            return loss
        who = type(self.module).__name__
        if outputs is None:
            if self.trainer.world_size > 1:
                raise ConfigurationError(
                    f"{who}.training_step returned None on rank {self.trainer.global_rank}: the other ranks would wait "
                    "for its gradients for ever. To leave a batch out return a loss of zero, such as `loss * 0`"
                )
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{who}.training_step returned None: such batches add nothing to the gradients. Is a `return loss` "
                    "missing?",
                    stacklevel=2,
                )
            return None
        if isinstance(outputs, Mapping):
            what = f'a dict without a tensor under "loss" (it has {sorted(map(str, outputs))})'
        else:
            what = f"a {type(outputs).__name__}"
        raise ConfigurationError(
            f'{who}.training_step returned {what}. It has to return the loss, a dict with the loss under "loss", or '
            "None to leave the batch out"
        )


class Manual:
    """automatic_optimization = False: zero_grad, backward and step are the module's own."""

    def __init__(self, trainer: "Trainer", module: "LightningModule", hooks: Hooks, step: Callable[..., Any]) -> None:
        for name, value in (
            ("gradient_clip_val", trainer.gradient_clip_val),
            (
                "accumulate_grad_batches",
                trainer.accumulate_grad_batches if trainer.accumulate_grad_batches > 1 else None,
            ),
        ):
            if value:
                raise ConfigurationError(
                    f"{name}={value} does not go with automatic_optimization = False: take it from the Trainer, and do "
                    "it in training_step (self.clip_gradients(optimizer, …); step every n batches)"
                )
        self.step = step
        self._strategy, self._module, precision = trainer.strategy, module, trainer.precision_plugin
        _leave_gradients_apart(self._strategy)
        self.loss: tuple[Tensor, float] | None = None
        self._before_backward, self._after_backward = hooks["on_before_backward"], hooks["on_after_backward"]
        backward = partial(_by_module, module, precision) if overridden(module, "backward") else precision.backward
        self._backward = trainer.profiler.timed("backward", backward)
        before_step = hooks["on_before_optimizer_step"]
        optimizer_step = trainer.profiler.timed("optimizer_step", trainer.strategy.stepping())
        unscales = type(precision).unscale is not Precision.unscale

        uses_closure = {id(optimizer) for optimizer in trainer.optimizers if _uses_closure(optimizer)}

        def stepped(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            def ready() -> Any:
                result = None
                if closure is not None:
                    with torch.enable_grad():
                        result = closure()
                if unscales:
                    precision.unscale(optimizer)
                for listener in before_step:
                    listener(optimizer)
                return result

            if id(optimizer) in uses_closure:
                return optimizer_step(optimizer, ready)
            result = ready()
            optimizer_step(optimizer)
            return result

        for optimizer in trainer.lightning_optimizers:
            optimizer.uses(stepped)

    def run(self, batch: Any, index: int, opens: bool, closes: bool, scale: float) -> Any:
        outputs = self.step(batch, index)
        if outputs is not None and not isinstance(outputs, Mapping | Tensor):
            raise ConfigurationError(
                f"training_step returned a {type(outputs).__name__}: with manual optimisation it returns nothing, a "
                "tensor or a dict, for on_train_batch_end to see"
            )
        return outputs

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        for listener in self._before_backward:
            listener(loss)
        self._backward(loss, *args, **kwargs)
        self._strategy.share_gradients(self._module)
        for listener in self._after_backward:
            listener()
        self.loss = loss.detach(), 1.0


def _leave_gradients_apart(strategy: Strategy) -> None:
    if not strategy.shares_each_backward:
        strategy.synchronise_gradients(False)


class LightningOptimizer(WrappedOptimizer):
    """An optimizer as a module sees it: `step` goes through precision and hooks and is counted in global_step."""

    def __init__(self, optimizer: Optimizer, trainer: "Trainer") -> None:
        super().__init__(optimizer, trainer.strategy.stepping())
        self._trainer = trainer
        self._counts = True

    def uses(self, step: Callable[..., Any], counts: bool = True) -> None:
        """What `step` does: (optimizer, closure) -> anything. `counts`: in global_step, else the loop counts."""
        self._step, self._counts = step, counts

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        result = super().step(closure, **kwargs)
        if self._counts:
            self._trainer.global_step += 1
        return result

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Inside, only this optimizer's parameters require gradients.

        Args:
            sync_grad: False: these gradients are not shared with the other ranks yet (accumulation).
        """
        trainer = self._trainer
        quiet = nullcontext() if sync_grad else trainer.strategy.without_sync()
        with quiet, only(parameters_of(self._optimizer), [parameters_of(o) for o in trainer.optimizers]):
            yield


def for_listeners(outputs: Any, part: float = 1.0) -> Any:
    """What on_train_batch_end is given for what training_step returned: a dict, its loss without the graph.

    Args:
        outputs: of several optimizers: a list, as the result will be.
        part: of the optimizer step: the loss is that part of it, as it was differentiated.
    """
    if isinstance(outputs, list):
        return [for_listeners(each, part) for each in outputs]
    if outputs is None:
        return {}
    found = dict(outputs) if isinstance(outputs, Mapping) else {"loss": outputs}
    loss = found.get("loss")
    if isinstance(loss, Tensor):
        found["loss"] = loss.detach() if part == 1.0 else loss.detach() * part
    return found


def clipping(trainer: "Trainer", module: "LightningModule") -> Callable[[Optimizer], Any] | None:
    """What clips the gradients of an optimizer that is about to step; None: nothing does."""
    value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    if overridden(module, "configure_gradient_clipping"):
        return lambda optimizer: module.configure_gradient_clipping(optimizer, value, algorithm)
    if not value:
        return None
    return lambda optimizer: trainer.strategy.clip_gradients(optimizer, value, algorithm or "norm")


@contextmanager
def only(chosen: list[Tensor], several: list[list[Tensor]]) -> Iterator[None]:
    """Inside, of the parameters of several optimizers only the chosen ones require gradients."""
    identities = {id(parameter) for parameter in chosen}
    others = {id(p): p for group in several for p in group if id(p) not in identities and p.requires_grad}
    for parameter in others.values():
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in others.values():
            parameter.requires_grad = True


def clear_gradients(optimizer: Optimizer) -> None:
    """optimizer.zero_grad(). torch's own spends most of its time, a twentieth of a small model's step, on labels for
    torch.profiler and on the compiler: where it is that one, its work alone is done here."""
    if getattr(optimizer.zero_grad, "__func__", None) is not _ZERO_GRAD:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _uses_closure(optimizer: Optimizer) -> bool:
    """May `step` do more with a closure than call it first? Of torch's own optimizers only LBFGS's demands one."""
    step = type(optimizer).step
    parameters = inspect.signature(step).parameters
    if step.__module__.startswith("torch.optim."):
        return parameters["closure"].default is inspect.Parameter.empty
    return "closure" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _by_module(module: "LightningModule", precision: Precision, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    module.backward(precision.scale(loss), *args, **kwargs)
