"""Validation, test and prediction: every sample once, nothing learned, no step taken."""

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from everstep.errors import ConfigurationError
from everstep.module import LightningModule
from everstep.sampling.loader import Remade, has_positions
from everstep.sampling.schedule import Micro, evaluation
from everstep.sampling.source import batch_size_of, limited
from everstep.sampling.stream import batch_count
from everstep.trainer.hooks import Hooks

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer

Stage = Literal["validation", "test", "predict"]


class Evaluation:
    """Loaders and step of one stage. `run` may be called again and again; persistent workers live between."""

    def __init__(
        self, trainer: "Trainer", module: LightningModule, hooks: Hooks, loaders: Any, stage: Stage, seed: int
    ) -> None:
        """
        Raises:
            ConfigurationError: a loader is none.
        """
        self.trainer, self.module, self.hooks, self.stage = trainer, module, hooks, stage
        listed = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
        for loader in listed:
            if isinstance(loader, Tensor | str | bytes | dict) or not hasattr(loader, "__iter__"):
                raise ConfigurationError(
                    f"a {stage} loader is a {type(loader).__name__}: give a DataLoader, another iterable of batches, "
                    "or a list of such (a list is read as several loaders, never as batches)"
                )
        limits = {"validation": trainer.limit_val_batches, "test": trainer.limit_test_batches}
        limit = limits.get(stage, trainer.limit_predict_batches)
        self.loaders = [_Loader(loader, trainer, limit, f"{stage}/{i}", seed) for i, loader in enumerate(listed)]
        function = getattr(module, f"{stage}_step")
        self._wants_loader = len(listed) > 1 or _positional(function) > 2
        self._wants_index = takes_index(function)
        self._step: Callable[..., Any] = trainer.precision.wrap(function)

    def run(self, most: int | None = None) -> tuple[list[dict[str, float]], list[list[Any]]]:
        """One pass. Returns the metrics of each loader, and of a prediction the outputs of each loader."""
        trainer, module, hooks, logs, stage = self.trainer, self.module, self.hooks, self.trainer.logs, self.stage
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        mode, outer = logs.mode, logs.begin_evaluation()
        logs.mode = False
        try:
            with torch.inference_mode():
                hooks.call(f"on_{stage}_start")
                hooks.call(f"on_{stage}_epoch_start")
                outputs = [self._loader(index, loader, most) for index, loader in enumerate(self.loaders)]
                logs.suffix, logs.samples = "", 1
                hooks.call(f"on_{stage}_epoch_end")
                values = logs.reduce_epoch()
                if not trainer.sanity_checking:
                    logs.send_epoch(values, max(trainer.global_step - 1, 0), trainer.current_epoch)
                hooks.call(f"on_{stage}_end")
        finally:
            logs.end_evaluation(outer)
            logs.mode = mode
            for part, training in modes:
                part.training = training
        return self._by_loader({name: float(value) for name, value in values.items()}), outputs

    def _loader(self, number: int, loader: "_Loader", most: int | None) -> list[Any]:
        hooks, logs, step, stage = self.hooks, self.trainer.logs, self._step, self.stage
        keep, outputs = stage == "predict", []
        batch_start, batch_end = hooks[f"on_{stage}_batch_start"], hooks[f"on_{stage}_batch_end"]
        several = (number,) if self._wants_loader else ()
        logs.suffix = f"/dataloader_idx_{number}" if len(self.loaders) > 1 else ""
        in_fit = stage == "validation" and self.trainer.state == "fit"
        for index, (samples, batch) in enumerate(loader.batches(most)):
            if not in_fit:
                self.trainer.run.check_stop()
            logs.begin_step(samples)
            for listener in batch_start:
                listener(batch, index, number)
            output = step(batch, index, *several) if self._wants_index else step(batch)
            for listener in batch_end:
                listener(output, batch, index, number)
            if not self.trainer.sanity_checking:
                logs.send_step(index, self.trainer.current_epoch)
            if keep:
                outputs.append(output)
        return outputs

    def _by_loader(self, values: dict[str, float]) -> list[dict[str, float]]:
        if len(self.loaders) == 1:
            return [values]
        return [
            {name: value for name, value in values.items() if name.endswith(f"/dataloader_idx_{index}")}
            | {name: value for name, value in values.items() if "/dataloader_idx_" not in name}
            for index in range(len(self.loaders))
        ]


class _Loader:
    """One loader of an evaluation, limited, this rank's part of it."""

    def __init__(self, loader: Any, trainer: "Trainer", limit: int | float, purpose: str, seed: int) -> None:
        self.user, self.trainer, self.limit, self.purpose = loader, trainer, limit, purpose
        self.remade = Remade(loader, seed) if has_positions(loader) else None
        if self.remade is None and batch_count(loader) is None and isinstance(limit, float) and limit < 1.0:
            raise ConfigurationError(
                f"{limit} is a part of a {purpose.split('/')[0]} loader of unknown length: give a number of batches "
                "(an int)"
            )

    def batches(self, most: int | None) -> Iterator[tuple[int, Any]]:
        """(samples, batch); `most`: at most so many batches a rank."""
        remade, strategy = self.remade, self.trainer.strategy
        if remade is None:
            count = batch_count(self.user)
            stop = (
                limited(count, self.limit) if count is not None else self.limit if isinstance(self.limit, int) else None
            )
            stop = most if stop is None else stop if most is None else min(stop, most)
            for index, batch in enumerate(self.user):
                if index == stop:
                    return
                yield batch_size_of(batch), batch
            return
        size = remade.batch_size * strategy.world_size
        total = len(remade) // size * size if self.user.drop_last else len(remade)
        rounds = limited(-(-total // size), self.limit)
        samples = min(total, (rounds if most is None else min(rounds, most)) * size)

        def plan() -> Iterator[Micro]:
            return evaluation(samples, remade.batch_size, strategy.world_size, strategy.rank)

        for micro, batch in zip(plan(), remade.batches(0, samples, plan, self.purpose), strict=True):
            yield micro.stop - micro.start, batch


def takes_index(step: Callable[..., Any]) -> bool:
    """Does a step want (batch, batch_idx), not the batch alone?"""
    return _positional(step) > 1


def _positional(function: Callable[..., Any]) -> int:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 2
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
