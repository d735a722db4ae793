"""Saving: a copy into kept buffers while training waits, everything else behind its back, and no collective there.

Training thread          background thread of each rank                      … of rank 0
copy into the buffers -> write files, hashing on the way -> tell the store -> hear all, check sizes, ask the
go on                                                                        coordinator, write the marker, tell, prune
"""

import contextlib
import hashlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from everstep.checkpoint import retention
from everstep.checkpoint.background import give_way
from everstep.checkpoint.format import Damaged, Index, Layout, Spec, pieces, to_json
from everstep.checkpoint.grant import Coordinator, Refused
from everstep.checkpoint.plan import Plan, difference, digest, make_plan, rank_file, reader, shard_file
from everstep.checkpoint.ranks import GaveUp, Ranks
from everstep.checkpoint.restore import read_marker
from everstep.checkpoint.storage import Body, Storage, read
from everstep.errors import ConfigurationError, StorageError
from everstep_protocol import codec
from everstep_protocol.checkpoints import (
    DATA,
    FORMAT_VERSION,
    INDEX_FILE,
    MARKERS,
    CheckpointId,
    Marker,
    Retention,
    StoredFile,
    newest_first,
)

log = logging.getLogger("everstep.checkpoint")
T = TypeVar("T")

#: Pauses between attempts, seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass(frozen=True)
class Lineage:
    """What is in the prefix that belongs to this run, and where this generation stands in it."""

    generation: int  # that keys carry
    granted: int  # generation of the round, as the coordinator knows it
    run_uid: str
    version: str
    keep: int
    retention: Retention = Retention()
    resumed_from: CheckpointId | None = None
    foreign: frozenset[CheckpointId] = (
        frozenset()
    )  # there before this run, which does not go on from them: never touched


class Staging:
    """Memory for one file's tensors, kept from save to save. Its bytes are the body of the file."""

    def __init__(self) -> None:
        self._layout = Layout.of({})
        self._body = torch.empty(0, dtype=torch.uint8)
        self._views: dict[str, torch.Tensor] = {}

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        layout = Layout.of(specs)
        if layout != self._layout:
            if layout.size != self._layout.size:
                self._body = torch.empty(layout.size, dtype=torch.uint8)
            self._layout, self._views = layout, layout.views(self._body)
        for name, view in self._views.items():
            view.copy_(tensors[name])

    def __bool__(self) -> bool:
        return bool(self._views)

    def file(self, **metadata: str) -> Body:
        header = self._layout.header(metadata)

        def parts() -> Iterator[memoryview | bytes]:
            yield header
            yield from pieces(self._body)

        return Body(len(header) + self._layout.size, parts)


@dataclass(eq=False)
class Job:
    """One save on its way."""

    number: int
    checkpoint: CheckpointId
    keep_forever: bool
    score: float | None
    files: dict[str, Body]
    written: dict[str, StoredFile] = field(default_factory=dict)
    staged: threading.Event = field(default_factory=threading.Event)  # the buffers are free again
    finished: threading.Event = field(default_factory=threading.Event)
    error: str | None = None
    began: float = field(default_factory=time.monotonic)
    give_up_at: float = math.inf  # monotonic seconds; at least one attempt is made
    _wake: threading.Event = field(default_factory=threading.Event)

    def hurry(self, give_up_at: float) -> None:
        self.give_up_at = min(self.give_up_at, give_up_at)
        self._wake.set()

    def pause(self, seconds: float) -> bool:
        """Sleep until the next attempt. False: there is none."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < min(end, self.give_up_at):
            self._wake.wait(min(end, self.give_up_at) - now)
            self._wake.clear()
        return time.monotonic() < self.give_up_at


class Saver:
    """One per rank. `save` and `wait` are called by the thread that trains, the same way on every rank."""

    def __init__(
        self,
        storage: Storage,
        ranks: Ranks,
        lineage: Lineage,
        *,
        coordinator: Coordinator | None,
        retry_seconds: float,
        published: Callable[[Marker], None],
        failing: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._ranks = ranks
        self._lineage = lineage
        self._coordinator = coordinator
        self._retry_seconds = retry_seconds
        self._published = published
        self._failing = failing
        self._parent = lineage.resumed_from
        self._shard, self._own = Staging(), Staging()
        self._plan: Plan | None = None
        self._digest = ""  # of the state that the plan is for
        self._last: Job | None = None
        self._number = 0
        self._markers: dict[CheckpointId, Marker] = {}  # as far as pruning has looked at them
        self._closing = threading.Event()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    # The thread that trains.

    def save(self, checkpoint: CheckpointId, shared: Any, own: Any, keep_forever: bool, score: float | None) -> None:
        last = self._last
        stored = last is not None and last.checkpoint == checkpoint and not (last.finished.is_set() and last.error)
        tree, tensors = to_json(shared, "shared")
        own_tree, own_tensors = to_json(own, "rank")
        fits = self._plan is not None and self._plan.fits(tensors)
        if not fits:
            self._digest = digest(tensors)
        # Every time, as a rank whose own state has not changed cannot know whether another's has.
        digests, all_stored = zip(*self._ranks.exchange([self._digest, stored]), strict=True)
        if len(set(digests)) > 1:
            raise ConfigurationError(
                f"the state to be saved is not the same on all ranks: {difference(tensors, self._ranks)}. Nothing was "
                f"saved. What only some ranks have (such as values kept or logged on rank 0 alone) cannot be in the "
                f"module's, optimizers' or callbacks' state: keep it on every rank"
            )
        if all(all_stored):
            return  # this very state is stored already, or on its way
        if self._plan is None or not fits:
            self._plan = make_plan(tensors, self._ranks)
        if last is not None and not last.finished.is_set():
            last.hurry(0)  # if it does not succeed at once, this one is the better try
            last.staged.wait()
        values = reader(tensors)
        self._shard.fill({box.key: values(box) for box in self._plan.mine})
        self._own.fill(own_tensors)
        files = {rank_file(self._ranks.rank): self._own.file(tree=json.dumps(own_tree, allow_nan=False))}
        if self._shard:
            files[shard_file(self._ranks.rank)] = self._shard.file()
        if self._ranks.rank == 0:
            files[INDEX_FILE] = Body.of(Index(tree, self._plan.tensors).dumps())
        self._number += 1
        job = self._last = Job(self._number, checkpoint, keep_forever, score, files)
        self.background(lambda: self._run(job))

    def wait(self) -> None:
        """Until the last save is durable. Called by all ranks.

        Raises:
            StorageError: it cannot be made so, although it was tried for `retry_seconds`.
        """
        job = self._last
        if job is None:
            return
        job.hurry(time.monotonic() + self._retry_seconds)
        job.finished.wait()
        # Together, so that rank 0, where the store is, does not leave before the others know.
        errors = [error for error in self._ranks.exchange(job.error) if error]
        if errors:
            raise StorageError(f"the checkpoint of step {job.checkpoint.step} could not be saved: {errors[0]}")

    def close(self) -> None:
        """End the thread. A save on its way may be lost: `wait` first if it matters."""
        self._closing.set()
        if self._last is not None:
            self._last.hurry(0)
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def background(self, work: Callable[[], None]) -> None:
        self._queue.put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="everstep-checkpoint", daemon=True)
            self._thread.start()

    # The background thread.

    def _work(self) -> None:
        give_way()
        while (work := self._queue.get()) is not None:
            work()

    def _run(self, job: Job) -> None:
        try:
            self._store(job)
        except (StorageError, Refused) as error:
            job.error = str(error)
        except GaveUp:
            job.error = "the run was ended before all ranks had written their part"
        except RuntimeError as error:  # the store's: rank 0 has died, and this rank will be ended as well
            job.error = f"lost contact with rank 0: {str(error).splitlines()[0]}"
        except Exception as error:
            log.exception("saving a checkpoint failed unexpectedly")
            job.error = f"{type(error).__name__}: {error}"
        try:
            if job.error:
                self._failing(job.error)
                if self._ranks.rank == 0:
                    log.warning("checkpoint of step %d not saved: %s", job.checkpoint.step, job.error)
        except Exception:
            log.exception("nobody could be told that the checkpoint of step %d failed", job.checkpoint.step)
        finally:  # whatever happens, nobody waits for ever
            job.files = {}
            job.staged.set()
            job.finished.set()

    def _store(self, job: Job) -> None:
        rank, outcome_key = self._ranks.rank, f"save/{job.number}"
        report: dict[str, Any]
        try:
            self._retry(job, lambda: self._write(job))
            report = {"files": [codec.encode(file) for file in job.written.values()]}
        except Exception as error:
            report = {"error": f"rank {rank}: {error}"}
        job.staged.set()
        self._ranks.tell(f"{outcome_key}/{rank}", report)
        outcome: dict[str, Any]
        if rank == 0:
            try:
                outcome = {"marker": codec.encode(self._publish(job, outcome_key))}
            except GaveUp:
                raise
            except Exception as error:  # whatever it is, the other ranks wait for word
                outcome = {"error": str(error)}
            self._ranks.tell(outcome_key, outcome)
        else:
            (outcome,) = self._ranks.hear([outcome_key], self._closing.is_set)
        if "error" in outcome:
            raise StorageError(outcome["error"])
        marker = codec.decode(Marker, outcome["marker"])
        self._parent = job.checkpoint
        self._published(marker)
        if rank == 0:
            self._prune()

    def _write(self, job: Job) -> None:
        for name, body in job.files.items():
            if name in job.written:
                continue
            digest = hashlib.sha256()

            def parts(body: Body = body) -> Iterator[memoryview | bytes]:
                nonlocal digest
                digest = hashlib.sha256()
                for piece in body.pieces():
                    digest.update(piece)
                    yield piece

            self._storage.put(job.checkpoint.data_prefix + name, replace(body, pieces=parts))
            job.written[name] = StoredFile(name, body.size, digest.hexdigest())

    def _publish(self, job: Job, outcome_key: str) -> Marker:
        keys = [f"{outcome_key}/{rank}" for rank in range(self._ranks.world_size)]
        reports = self._ranks.hear(keys, self._closing.is_set)
        # Every rank has told about this save, so all have heard the outcome of the one before.
        self._ranks.forget([*keys, f"save/{job.number - 1}"])
        for report in reports:
            if "error" in report:
                raise StorageError(report["error"])
        files = tuple(codec.decode(StoredFile, file) for report in reports for file in report["files"])
        self._retry(job, lambda: self._check(job.checkpoint, files))
        if self._coordinator is not None:
            coordinator = self._coordinator
            try:
                self._retry(job, lambda: coordinator.ask(self._lineage.granted, job.checkpoint.step))
            except Refused as refused:
                raise Refused(f"the coordinator refused to have it published: {refused}") from None
        marker = Marker(
            format=FORMAT_VERSION,
            generation=job.checkpoint.generation,
            call=job.checkpoint.call,
            step=job.checkpoint.step,
            parent=self._parent.name if self._parent else None,
            world_size=self._ranks.world_size,
            files=files,
            time=time.time(),
            run_uid=self._lineage.run_uid,
            everstep=self._lineage.version,
            keep_forever=job.keep_forever,
            seconds=time.monotonic() - job.began,
            score=job.score,
        )
        self._retry(job, lambda: self._mark(job.checkpoint, codec.dumps(marker)))
        return marker

    def _check(self, checkpoint: CheckpointId, files: Iterable[StoredFile]) -> None:
        """What the store says it has is what was written."""
        stored = {entry.key: entry.size for entry in self._storage.list(checkpoint.data_prefix)}
        for file in files:
            size = stored.get(checkpoint.data_prefix + file.name)
            if size != file.size:
                has = "does not have it" if size is None else f"has {size} bytes of it"
                raise StorageError(f"{file.name}: {file.size} bytes were written, but {self._storage.uri} {has}")

    def _mark(self, checkpoint: CheckpointId, marker: bytes) -> None:
        try:
            self._storage.put(checkpoint.marker_key, Body.of(marker), create_only=True)
        except FileExistsError:
            # An earlier attempt may have succeeded without our hearing of it.
            if read(self._storage, checkpoint.marker_key) != marker:
                raise Refused(f"{checkpoint.marker_key} exists already and is not ours") from None

    def _retry(self, job: Job, attempt: Callable[[], T]) -> T:
        seconds = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except StorageError as error:
                self._failing(str(error))
                log.info("checkpoint of step %d: %s", job.checkpoint.step, error)
                if not job.pause(seconds):
                    raise
                seconds = min(2 * seconds, _LONGEST_PAUSE)

    # Cleaning up, on rank 0: never of consequence for the run.

    def _prune(self) -> None:
        lineage = self._lineage
        where: dict[str, Any] = {"generation": lineage.generation, "resumed_from": lineage.resumed_from}
        try:
            ids = newest_first(entry.key for entry in self._storage.list(MARKERS))
            mine = [i for i in ids if i not in lineage.foreign]
            # Of most runs nobody asks for more than the newest: then these are few, or none.
            for checkpoint in (
                mine
                if lineage.retention != Retention()
                else retention.superseded(mine, **where, keep=lineage.keep, forever=self._markers)
            ):
                self._look_at(checkpoint)
            known = {i: marker for i, marker in self._markers.items() if i in mine}
            in_lineage = {i: marker for i, marker in known.items() if retention.in_lineage(i, **where)}
            stay = {i for i, marker in known.items() if marker.keep_forever}
            stay |= retention.milestones(in_lineage, lineage.retention)
            for checkpoint in retention.superseded(mine, **where, keep=lineage.keep, forever=stay):
                # Its marker first, so that it stops existing before it is incomplete.
                self._storage.delete([checkpoint.marker_key])
                self._delete_data(checkpoint)
        except Exception as error:
            log.info("old checkpoints not pruned: %s", error)

    def _look_at(self, checkpoint: CheckpointId) -> None:
        if checkpoint not in self._markers:
            with contextlib.suppress(Damaged):
                self._markers[checkpoint] = read_marker(self._storage, checkpoint)

    def sweep(self, leftovers: Iterable[str]) -> None:
        """Delete what earlier generations began and did not complete, and the given objects."""
        try:
            self._storage.delete(leftovers)
            names = {entry.key.split("/")[1] for entry in self._storage.list(DATA)}
            complete = set(newest_first(entry.key for entry in self._storage.list(MARKERS)))
            for checkpoint in retention.orphans(names, complete, generation=self._lineage.generation):
                self._delete_data(checkpoint)
        except Exception as error:
            log.info("leftovers of earlier generations not swept: %s", error)

    def _delete_data(self, checkpoint: CheckpointId) -> None:
        self._storage.delete([entry.key for entry in self._storage.list(checkpoint.data_prefix)])
