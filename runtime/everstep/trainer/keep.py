"""The `.ckpt` files of a Trainer: asked for in hooks, made between two steps, written behind the training's back."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from everstep import rng
from everstep.checkpoint import ckpt
from everstep.checkpoint.ckpt_writer import CkptWriter
from everstep.checkpoint.format import from_json, read_tensors, to_json
from everstep.checkpoint.save import Staging
from everstep.strategies import Strategy
from everstep.trainer.state import Tree, dump

if TYPE_CHECKING:
    from everstep.trainer.fit import Fit
    from everstep.trainer.trainer import Trainer


class Keeper:
    """Everything here is called on every rank; rank 0 writes."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.fit: Fit | None = None  # the latest
        self.left: Tree | None = None  # of a fit that an earlier life of the script has completed: what it ended with
        self.inside = False  # of the steps of a fit: there will be a moment between two
        self.pending: list[Callable[[], None]] = []
        self._places: dict[bool, list[str]] = {False: [], True: []}  # by weights_only
        self._after: list[Callable[[], Any]] = []
        self._awaited: list[Callable[[], Any]] = []
        self._writer = CkptWriter()

    def __getstate__(self) -> dict[str, Any]:
        """A copied Trainer has no fit; what it saves are the weights, until it has one of its own."""
        return {**vars(self), "fit": None}

    def begin(self, fit: "Fit") -> None:
        """The steps of a fit begin."""
        self.fit, self.left, self.inside = fit, None, True

    def end(self) -> None:
        """There are no more steps; every file that was asked for is there when this returns. Collective.

        Raises:
            StorageError: one could not be written.
        """
        self.inside = False
        self.flush()
        self._writer.wait()
        self.trainer.strategy.barrier()

    def between_steps(self, work: Callable[[], None]) -> None:
        """Do it when everything of the present step is done: validation, the epoch's end if it is one, schedulers."""
        self.pending.append(work)
        if not self.inside:
            self.flush()

    def save(self, place: str, weights_only: bool = False) -> None:
        """For work between steps: have this file written. All files of one moment are of one copy of the state."""
        self._places[weights_only].append(place)

    def afterwards(self, work: Callable[[], Any]) -> None:
        """For work between steps: do it, on rank 0, when the files that were asked for before are written."""
        self._after.append(work)

    def in_background(self, work: Callable[[], Any]) -> None:
        """Do it on rank 0, now, while training goes on."""
        if self.trainer.is_global_zero:
            self._writer.later(work)

    def waited_for(self, work: Callable[[], Any]) -> None:
        """As `afterwards`, but the training waits, and the work is done by its own thread."""
        self._awaited.append(work)

    def flush(self) -> None:
        """The moment between two steps."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()
        for weights_only, places in self._places.items():
            if places:
                if self.inside and self.fit is not None:
                    self.fit.check_loss()  # a file with NaN weights would take the place of a good one
                checkpoint = self.dump(weights_only)
                if self.trainer.is_global_zero:
                    self._writer.save(places, checkpoint)
                places.clear()
        after, self._after = self._after, []
        if self.trainer.is_global_zero:
            for work in after:
                self._writer.later(work)
        awaited, self._awaited = self._awaited, []
        if awaited and self.trainer.is_global_zero:
            self._writer.wait()
            for work in awaited:
                work()

    def save_now(self, place: str, weights_only: bool) -> None:
        """Write it before this returns, without a copy of the state."""
        checkpoint = self.dump(weights_only)
        self._writer.wait()
        if self.trainer.is_global_zero:
            ckpt.write(place, *ckpt.data_of(checkpoint))
        self.trainer.strategy.barrier()

    def abandon(self) -> None:
        """The call ends by an exception: what is being written is finished, whatever becomes of it."""
        self.inside = False
        self.pending.clear()
        try:
            self._writer.wait()
        except Exception as error:
            self.trainer.print(f"everstep: {error}")

    def dump(self, weights_only: bool) -> Tree:
        """The whole state, with whole tensors, and what each rank alone has."""
        trainer, fit = self.trainer, self.fit
        if fit is not None and fit.module is not trainer.lightning_module:
            fit = None  # another model since
        checkpoint: Tree = trainer.strategy.gather(dump(trainer, fit, weights_only=weights_only))
        if weights_only:
            return checkpoint
        if fit is None and self.left is not None:
            return {**self.left, "state_dict": checkpoint["state_dict"]}
        if fit is not None:
            own = {"rng": rng.get_state(), "means": trainer.logs.state_dict(), "stream": fit.source.rank_state()}
            checkpoint["everstep"]["ranks"] = of_every_rank(own, trainer.strategy)
        return checkpoint


def of_every_rank(tree: Any, strategy: Strategy) -> list[Any]:
    """Everybody's tree, by rank. A collective."""
    if strategy.world_size == 1:
        return [tree]
    data, tensors = to_json(tree, "rank")
    staging = Staging()
    staging.fill(tensors)
    mine = torch.frombuffer(bytearray().join(staging.file(tree=json.dumps(data)).pieces()), dtype=torch.uint8)
    mine = mine.to(strategy.root_device)
    sizes = strategy.all_gather(torch.tensor([len(mine)], device=mine.device)).flatten().tolist()
    everybody = strategy.all_gather(torch.nn.functional.pad(mine, (0, max(sizes) - len(mine)))).cpu()
    trees = []
    for row, size in zip(everybody, sizes, strict=True):
        tensors, metadata = read_tensors([row[:size].numpy().data])
        trees.append(from_json(json.loads(metadata["tree"]), tensors))
    return trees
