"""The checkpoints of a run, as the Trainer sees them."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from everstep.checkpoint.format import Damaged
from everstep.checkpoint.grant import Coordinator
from everstep.checkpoint.owner import claim
from everstep.checkpoint.ranks import Ranks, Store
from everstep.checkpoint.restore import read_marker, read_state
from everstep.checkpoint.save import Lineage, Saver
from everstep.checkpoint.storage import Body, Storage, open_storage, read
from everstep.environment import Environment
from everstep.errors import ConfigurationError, EverstepError, StorageError, StorageRefusedError
from everstep_protocol import codec
from everstep_protocol.checkpoints import DATA, MARKERS, CheckpointId, Marker, Owner, Retention, newest_first
from everstep_protocol.messages import CheckpointInfo

log = logging.getLogger("everstep.checkpoint")

DEFAULT_KEEP = 2
_NOBODY = Owner("", "", "")  # a script outside of any run


@dataclass(frozen=True)
class Restored:
    """A checkpoint, read and verified."""

    name: str
    call: int  # Trainer calls that were complete
    step: int  # optimizer steps
    shared: Any  # tree
    rank: Any | None  # tree of this rank; None if the world has another size than the one that wrote it
    info: CheckpointInfo


class Checkpointer:
    """`open`, `load`, `save` and `wait` are called by every rank, in the same order, from one thread.

    A tree is made of dicts, lists, tuples, numbers, strings, bytes, None, tensors and numpy arrays. The `shared` tree
    is the same on every rank and is written once; the `rank` tree is each rank's own.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        rank: int = 0,
        world_size: int = 1,
        store: Store | None = None,
        generation: int = 1,
        run: Owner = _NOBODY,
        every_steps: int | None = None,
        keep: int = DEFAULT_KEEP,
        retention: Retention | None = None,
        resume: bool = True,
        coordinator: Coordinator | None = None,
        retry_seconds: float = 60.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            store: of the process group; None for a single rank.
            generation: of the round. Keys carry it, or a higher one if the prefix holds that already.
            run: who this is. Another run's prefix is refused.
            keep: how many to keep, at least two, besides those saved with `keep_forever`.
            retention: which older ones stay as well.
            resume: False: do not go on from what another run, or an earlier one of this name, has left here.
            retry_seconds: how long `wait` keeps trying.
            on_change: called, from any thread, when `last_checkpoint`, `resumed_from` or `not_durable_since` changed.
        """
        self.every_steps = every_steps
        self.last_checkpoint: CheckpointInfo | None = None
        self.resumed_from: CheckpointInfo | None = None
        self.not_durable_since: float | None = None  # seconds since the epoch; None: the last save is durable
        self.not_durable_why = ""
        self._storage = storage
        self._ranks = Ranks(rank, world_size, store, generation)
        self._round = generation
        self._run = run
        self._keep = keep
        self.retention = retention or Retention()
        self._resume = resume
        self._coordinator = coordinator
        self._retry_seconds = retry_seconds
        self._on_change = on_change
        self._saver: Saver | None = None
        self._generation = generation

    @classmethod
    def from_environment(
        cls,
        environment: Environment,
        store: Store | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        retry_seconds: float = 60.0,
    ) -> "Checkpointer | None":
        """Of a worker process; None if its run keeps no checkpoints.

        Raises:
            ConfigurationError: the uri is not one, or is not understood.
        """
        if environment.checkpoint_uri is None:
            return None
        return cls(
            open_storage(environment.checkpoint_uri),
            rank=environment.rank,
            world_size=environment.world_size,
            store=store,
            generation=environment.generation,
            run=Owner(environment.run_namespace, environment.run_name, environment.run_uid, time.time()),
            every_steps=environment.checkpoint_every_steps,
            keep=environment.checkpoint_keep or DEFAULT_KEEP,
            retention=environment.checkpoint_retention,
            resume=environment.checkpoint_resume == "auto",
            coordinator=Coordinator(environment.coordinator, environment.token) if environment.coordinator else None,
            retry_seconds=retry_seconds,
            on_change=on_change,
        )

    def open(self, needs: Callable[[Any], Iterable[str]] = lambda shared: ()) -> Restored | None:
        """The newest checkpoint that can be verified, None if there is none. Collective.

        Args:
            needs: names of other checkpoints without which one is of no use, from its shared tree. If one of them is
                damaged, an older checkpoint is taken.

        Raises:
            ConfigurationError: the prefix is another run's, is not shared by all nodes, or a newer everstep wrote it.
            StorageError: the store cannot be reached, or none of its checkpoints can be restored.
        """
        plan = self._first(self._survey)
        self._generation = plan["generation"]
        self._same_storage(plan["probe"])
        notes: list[str] = list(plan["notes"])
        passed_over = False
        restored = None
        for name in plan["candidates"]:
            restored, wrong = self._try_with_needs(name, needs)
            if restored is not None:
                break
            notes.append(wrong)
            passed_over = True
        if restored is None and plan["candidates"]:
            raise StorageRefusedError(
                f"none of the checkpoints in {self._storage.uri} can be restored: {'; '.join(notes)}. Repair it, "
                f"choose another checkpoint uri, or set spec.checkpoint.resume to never to start from the beginning"
            )
        resumed_from = None
        if restored is not None:
            resumed_from = CheckpointId.parse(restored.name)
            incomplete = [
                i for i in map(CheckpointId.parse, plan["incomplete"]) if i and resumed_from and i > resumed_from
            ]
            notes += [f"step {i.step}: it has no marker, so it was never completed" for i in incomplete]
            if incomplete or passed_over:
                notes.append(f"fell back to step {restored.step}")
            restored = replace(restored, info=replace(restored.info, note="; ".join(_shortened(notes))))
            self.resumed_from = self.last_checkpoint = restored.info
        elif plan["incomplete"]:
            notes.append("what was begun here was never completed; starting from the beginning")
        if notes and self._ranks.rank == 0:
            log.warning("%s: %s", self._storage.uri, "; ".join(notes))
        lineage = Lineage(
            generation=self._generation,
            granted=self._round,
            run_uid=self._run.uid,
            version=metadata.version("everstep"),
            keep=self._keep,
            retention=self.retention,
            resumed_from=resumed_from,
            foreign=frozenset(i for i in map(CheckpointId.parse, plan["foreign"]) if i),
        )
        saver = self._saver = Saver(
            self._storage,
            self._ranks,
            lineage,
            coordinator=self._coordinator,
            retry_seconds=self._retry_seconds,
            published=self._published,
            failing=self._failing,
        )
        if self._ranks.rank == 0:
            saver.background(lambda: saver.sweep([plan["probe"]]))
        self._on_change()
        return restored

    def load(self, name: str) -> Restored:
        """A certain checkpoint, by the name that `save` gave. Collective.

        Raises:
            StorageError: it is gone or damaged, or the store cannot be reached.
        """
        restored, wrong = self._try(name)
        if restored is None:
            raise StorageError(f"checkpoint {name} in {self._storage.uri} cannot be restored: {wrong}")
        return restored

    def save(
        self, call: int, step: int, shared: Any, rank: Any, *, keep_forever: bool = False, wait: bool = False,
        score: float | None = None,
    ) -> str:  # fmt: skip
        """Copy the state and make it durable in the background. Returns the checkpoint's name.

        Blocks for the copy, and before it until the previous save's copy is written. The ranks compare a digest of the
        shared tensors' names, types and shapes first. What else the shared tree holds is stored as rank 0 has it.

        Raises:
            StorageError: `wait`, and it could not be made durable.
            ConfigurationError: the state holds something that is not data, or the ranks' `shared` tensors differ.
        """
        checkpoint = CheckpointId(self._generation, call, step)
        self._opened.save(checkpoint, shared, rank, keep_forever, score)
        if wait:
            self.wait()
        return checkpoint.name

    def wait(self) -> None:
        """Until the last save is durable, on all ranks. Collective.

        Raises:
            StorageError: it could not be made so, although it was tried for `retry_seconds`.
        """
        self._opened.wait()

    def close(self) -> None:
        """End the background thread. A save on its way may be lost: `wait` first if it matters."""
        if self._saver is not None:
            self._saver.close()

    @property
    def _opened(self) -> Saver:
        if self._saver is None:
            raise RuntimeError("Checkpointer.open has to be called first")
        return self._saver

    # Opening.

    def _first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0 (JSON), on every rank; its errors too."""
        outcome: dict[str, Any] = {}
        if self._ranks.rank == 0:
            try:
                outcome = {"value": work()}
            except EverstepError as error:
                outcome = {"error": str(error), "kind": type(error).__name__}
        outcome = self._ranks.exchange(outcome)[0]
        if "error" in outcome:
            raise _KINDS[outcome["kind"]](outcome["error"])
        return outcome["value"]

    def _survey(self) -> dict[str, Any]:
        """Rank 0: claim the prefix and see what is in it."""
        owner = claim(self._storage, self._run)
        markers = newest_first(entry.key for entry in self._storage.list(MARKERS))
        begun = {CheckpointId.parse(entry.key.split("/")[1]) for entry in self._storage.list(DATA)} - {None}
        incomplete = sorted((i for i in begun if i is not None and i not in markers), reverse=True)
        generation = max([self._round, *(i.generation + 1 for i in [*markers, *incomplete])])
        mine = markers if self._resume else [i for i in markers if self._wrote(i)]
        notes = []
        if markers and owner.uid != self._run.uid and self._resume:
            notes.append(f"continues the checkpoints of an earlier run of this name (uid {owner.uid or 'unknown'})")
        if len(mine) < len(markers):
            notes.append(
                f"starts a new lineage, as spec.checkpoint.resume is never; the {len(markers) - len(mine)} "
                f"checkpoints that were here before stay untouched"
            )
        probe = f"probes/{generation:06d}.json"
        self._storage.put(probe, Body.of(self._token(generation)))
        return {
            "generation": generation,
            "candidates": [i.name for i in mine],
            "foreign": [i.name for i in markers if i not in mine],
            "incomplete": [i.name for i in incomplete],
            "notes": notes,
            "probe": probe,
        }

    def _wrote(self, checkpoint: CheckpointId) -> bool:
        try:
            return read_marker(self._storage, checkpoint).run_uid == self._run.uid
        except (Damaged, ConfigurationError):
            return False

    def _token(self, generation: int) -> bytes:
        return codec.dumps(replace(self._run, time=float(generation)))

    def _same_storage(self, probe: str) -> None:
        """Every rank sees what rank 0 has just written."""
        wrong = ""
        try:
            if read(self._storage, probe) != self._token(self._generation):
                wrong = "sees other files there"
        except FileNotFoundError:
            wrong = "does not see what rank 0 writes there"
        except StorageError as error:
            wrong = f"cannot read there: {error}"
        for rank, problem in enumerate(self._ranks.exchange(wrong)):
            if problem:
                raise (StorageError if problem.startswith("cannot") else ConfigurationError)(
                    f"checkpoint uri {self._storage.uri}: rank {rank} {problem}. All nodes have to see the same "
                    f"storage: use a shared file system or an object store such as s3://bucket/prefix"
                )

    def _try_with_needs(self, name: str, needs: Callable[[Any], Iterable[str]]) -> tuple[Restored | None, str]:
        restored, wrong = self._try(name)
        for other in needs(restored.shared) if restored is not None else ():
            needed, damage = (restored, "") if other == name else self._try(other)
            if needed is None:
                checkpoint = CheckpointId.parse(name)
                return None, f"step {checkpoint.step if checkpoint else '?'} needs what is damaged: {damage}"
        return restored, wrong

    def _try(self, name: str) -> tuple[Restored | None, str]:
        """Read a checkpoint on all ranks. If one of them finds it damaged: (None, why), on all of them."""
        checkpoint = CheckpointId.parse(name)
        if checkpoint is None:
            return None, f"{name!r} is not the name of a checkpoint"

        def read_it() -> dict[str, Any]:
            try:
                return {"marker": codec.encode(read_marker(self._storage, checkpoint))}
            except Damaged as damage:
                return {"damage": str(damage)}

        found = self._first(read_it)
        if "damage" in found:
            return None, f"step {checkpoint.step}: {found['damage']}"
        marker = codec.decode(Marker, found["marker"])
        shared = own = None
        damage = failure = ""
        try:
            shared, own = read_state(self._storage, checkpoint, marker, self._ranks.rank, self._ranks.world_size)
        except Damaged as error:
            damage = str(error)
        except StorageError as error:
            failure = str(error)
        results = self._ranks.exchange([damage, failure])
        for rank, (_, problem) in enumerate(results):
            if problem:
                raise StorageError(f"rank {rank}: {problem}")
        for problem, _ in results:
            if problem:
                return None, f"step {checkpoint.step}: {problem}"
        return Restored(name, checkpoint.call, checkpoint.step, shared, own, self._info(marker)), ""

    def _info(self, marker: Marker) -> CheckpointInfo:
        checkpoint = CheckpointId(marker.generation, marker.call, marker.step)
        return CheckpointInfo(
            step=marker.step,
            uri=f"{self._storage.uri}/{checkpoint.data_prefix}",
            world_size=marker.world_size,
            generation=marker.generation,
            time=marker.time,
            bytes=sum(file.size for file in marker.files),
            seconds=marker.seconds,
        )

    # What the saver reports, from its thread.

    def _published(self, marker: Marker) -> None:
        self.last_checkpoint = self._info(marker)
        self.not_durable_since, self.not_durable_why = None, ""
        self._on_change()

    def _failing(self, why: str) -> None:
        if self.not_durable_since is None or self.not_durable_why != why:
            self.not_durable_why = why
            self.not_durable_since = self.not_durable_since or time.time()
            self._on_change()


_KINDS: dict[str, type[EverstepError]] = {
    kind.__name__: kind for kind in (ConfigurationError, StorageError, StorageRefusedError)
}


def _shortened(notes: list[str]) -> list[str]:
    """For status and screen: the first few and the last, which says where it ended."""
    most = 10
    return notes if len(notes) <= most else [*notes[: most - 1], f"{len(notes) - most} more like this", notes[-1]]
