"""Validation, test and prediction: every sample once, nothing learned, no step taken."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from everstep.compiled import compiled
from everstep.errors import ConfigurationError
from everstep.module import LightningModule
from everstep.sampling.combined import CombinedLoader
from everstep.sampling.loader import Remade, Remembering, has_positions, unshuffled
from everstep.sampling.schedule import evaluation
from everstep.sampling.source import Parts, batch_size_of, limited
from everstep.sampling.stream import batch_count
from everstep.trainer.hooks import Hooks, positional, refuse_unnumbered, required
from everstep.trainer.loaders import Loaders, apart, combined
from everstep.trainer.transfer import Transfer

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer

Stage = Literal["validation", "test", "predict"]
METHODS = {"validation": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}


class Evaluation:
    """Loaders and step of one stage. `run` may be called again and again; persistent workers live between."""

    def __init__(
        self, trainer: "Trainer", module: LightningModule, hooks: Hooks, loaders: Loaders, transfer: Transfer | None,
        stage: Stage, seed: int,
    ) -> None:  # fmt: skip
        self.trainer, self.module, self.hooks, self.stage = trainer, module, hooks, stage
        self.transfer, self.seed = transfer, seed
        self._loaders_of_call = loaders
        self._made: list[_Loader] | None = None
        self.keep = False
        self.outputs: list[list[Any]] = []
        self.seen: list[int] = []  # batches of each loader, of all runs: the steps of what is logged by batch
        self.batch_indices: list[list[list[int] | None]] = []
        function = getattr(module, f"{stage}_step")
        self._arguments, self._required = positional(function), required(function)
        self._step: Callable[..., Any] = trainer.profiler.timed(
            f"{stage}_step",
            trainer.strategy.wrap_evaluation(module, trainer.precision_plugin.wrap(compiled(module, function))),
        )

    @property
    def loaders(self) -> "list[_Loader]":
        """Made when they are first asked for.

        Raises:
            ConfigurationError: there is none, or one of them is none.
        """
        if self._made is None:
            trainer, stage = self.trainer, self.stage
            method = METHODS[stage]
            same = bool(trainer.overfit_batches) and stage == "validation"
            found = combined(self._loaders_of_call.need(method), "sequential", stage)
            if same:
                found = unshuffled(found)
            sequence = isinstance(found, CombinedLoader) and found.mode == "sequential"
            several = found.flattened if sequence else [found]
            if len(several) > 1 and self._arguments < 3:
                raise ConfigurationError(
                    f"there are {len(several)} {stage} loaders: define "
                    f"{type(self.module).__name__}.{stage}_step(batch, batch_idx, dataloader_idx)"
                )
            if len(several) > 1:
                refuse_unnumbered((self.module, *trainer.callbacks), stage, len(several))
            limit = trainer.limit_batches(stage)
            self._made = [
                _Loader(loader, trainer, limit, f"{stage}/{i}", self.seed, same) for i, loader in enumerate(several)
            ]
            trainer.told_of_loaders(stage, apart(found), [loader.count() for loader in self._made])
        return self._made

    def make_loaders(self) -> None:
        """Now, instead of when they are first needed."""
        _ = self.loaders

    def reload(self) -> None:
        """Ask for the loaders again at the next run."""
        self._made = None

    def run(self, most: int | None = None, keep: bool = False) -> tuple[list[dict[str, float]], list[list[Any]]]:
        """One pass, of at most so many batches of each loader (-1: all). Returns the metrics of each loader, and if
        they are to be kept what the step returned for each batch of each loader."""
        trainer, module, hooks, logs, stage = self.trainer, self.module, self.hooks, self.trainer.logs, self.stage
        loaders = self.loaders
        modes = [(part, part.training) for part in module.modules()]
        mode, outer = logs.mode, logs.begin_evaluation()
        logs.mode = None if stage == "predict" else False
        self.keep, self.batch_indices, self.outputs = keep, [], []
        if stage == "predict":
            trainer.predictions, trainer.prediction_indices = self.outputs, self.batch_indices
        try:
            with (
                torch.inference_mode()
                if trainer.inference_mode and trainer.strategy.inference_mode
                else torch.no_grad()
            ):
                if hooks[f"on_{stage}_model_eval"]:
                    hooks.call(f"on_{stage}_model_eval")
                else:
                    module.eval()
                hooks.call(f"on_{stage}_start")
                hooks.call(f"on_{stage}_epoch_start")
                for index, loader in enumerate(loaders):
                    self._loader(index, loader, most)
                logs.suffix, logs.samples = "", 1
                values = logs.reduce_epoch()
                hooks.call(f"on_{stage}_epoch_end")
                values.update(logs.reduce_epoch())  # what the hooks have logged
                if not trainer.sanity_checking:
                    within = int(trainer.fitting)  # in a fit it belongs to the latest step
                    logs.send_epoch(values, max(trainer.batches_that_stepped - within, 0), trainer.current_epoch)
                logs.mode = None
                hooks.call(f"on_{stage}_end")
                results = [logs.named_for_people(part) for part in self._by_loader(values)]
        finally:
            logs.end_evaluation(outer)
            logs.mode = mode
            if hooks[f"on_{stage}_model_train"]:
                hooks.call(f"on_{stage}_model_train")
            else:
                for part, training in modes:
                    part.training = training
        return results, self.outputs

    def _loader(self, number: int, loader: "_Loader", most: int | None) -> None:
        hooks, logs, step, stage, transfer = self.hooks, self.trainer.logs, self._step, self.stage, self.transfer
        outputs: list[Any] = []
        indices: list[list[int] | None] = []
        self.outputs.append(outputs)
        self.batch_indices.append(indices)
        batch_start, batch_end = hooks[f"on_{stage}_batch_start"], hooks[f"on_{stage}_batch_end"]
        several = len(self.loaders) > 1
        wants_index, wants_number = self._arguments > 1, several or self._required > 2
        which = (number,) if several else ()
        logs.suffix = f"/dataloader_idx_{number}" if several else ""
        in_fit = self.trainer.fitting
        self.seen.extend([0] * (number + 1 - len(self.seen)))
        for index, (samples, batch) in enumerate(loader.batches(most)):
            if not in_fit:
                self.trainer.run.check_stop()
            if transfer is not None:
                batch = transfer(batch, number)
            logs.begin_step(samples)
            if stage == "predict":
                indices.append(loader.indices)
            for listener in batch_start:
                listener(batch, index, *which)
            if wants_number:
                output = step(batch, index, number)
            else:
                output = step(batch, index) if wants_index else step(batch)
            for listener in batch_end:
                listener(output, batch, index, *which)
            if not self.trainer.sanity_checking:
                logs.send_step(self.seen[number], self.trainer.current_epoch)
                self.seen[number] += 1
            if self.keep:
                outputs.append(output)

    def _by_loader(self, values: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """What was logged while a loader was read is of that loader, the rest of all."""
        if len(self.loaders) == 1:
            return [values]
        by_suffix = self.trainer.logs.names_of_loaders
        of_one = {name for names in by_suffix.values() for name in names}
        return [
            {
                name: value
                for name, value in values.items()
                if name in by_suffix.get(suffix, ())
                or name.endswith(suffix)
                or not (name in of_one or "/dataloader_idx_" in name)
            }
            for suffix in (f"/dataloader_idx_{index}" for index in range(len(self.loaders)))
        ]


class _Loader:
    """One loader of an evaluation, limited, this rank's part of it."""

    def __init__(
        self, loader: Any, trainer: "Trainer", limit: int | float, purpose: str, seed: int, same: bool
    ) -> None:
        divide = trainer.use_distributed_sampler
        self.trainer, self.limit = trainer, limit
        self.indices: list[int] | None = None  # of the present batch's samples in the dataset, where that is known
        self._purpose = purpose
        self._remade = Remade(loader, seed, same_every_epoch=same) if divide and has_positions(loader) else None
        if isinstance(loader, CombinedLoader):
            stage = purpose.split("/")[0]
            loader = Parts(loader, trainer.strategy, seed, limit, stage, divide=divide, same=same, training=False)
            self.limit = 1.0
        self._stream = loader
        asked = self._remade is None and purpose.startswith("predict")
        self._remembering = Remembering(loader) if asked and Remembering.can(loader) else None
        if self._remade is None and batch_count(loader) is None and isinstance(limit, float) and limit < 1.0:
            raise ConfigurationError(
                f"{limit} is a part of a {purpose.split('/')[0]} loader of unknown length: give a number of batches "
                "(an int)"
            )

    def count(self) -> int | float:
        """Batches of this rank; inf: not known."""
        if self._remade is not None:
            return limited(self._remade.rounds(self.trainer.strategy.data_world_size)[0], self.limit)
        count = batch_count(self._stream)
        if count is not None:
            return limited(count, self.limit)
        return self.limit if isinstance(self.limit, int) else float("inf")

    def batches(self, most: int | None) -> Iterator[tuple[int, Any]]:
        """(samples, batch); `most`: at most so many batches a rank; None or -1: all."""
        remade, strategy = self._remade, self.trainer.strategy
        stop = self.count()
        if most is not None and most >= 0:
            stop = min(stop, most)
        if remade is None:
            known = self._remembering.batches() if self._remembering else ((None, batch) for batch in self._stream)
            for index, (self.indices, batch) in enumerate(known):
                if index == stop:
                    return
                yield batch_size_of(batch), batch
            return
        world = strategy.data_world_size
        samples = min(remade.rounds(world)[1], int(stop) * remade.batch_size * world)

        plan = evaluation(samples, remade.batch_size, world, strategy.data_rank)
        for micro, batch in remade.planned(0, plan, self._purpose):
            self.indices = remade.indices(micro)
            yield micro.samples, batch
