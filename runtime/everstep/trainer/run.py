"""The run around the script: checkpoints, the board, and the ordinals of Trainer calls. One per process.

A restarted script runs from its first line. Its Trainer calls are numbered in the order in which it makes them: a call
that was completed in an earlier life returns its recorded result, the one that was interrupted resumes, later ones run.
"""

import atexit
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from threading import Lock
from typing import Any, Protocol

from everstep import rng
from everstep.board import Board, Seat
from everstep.checkpoint.artifacts import Artifacts
from everstep.checkpoint.storage import open_storage
from everstep.environment import Environment
from everstep.errors import ConfigurationError, Stopped
from everstep.strategies import Strategy
from everstep_protocol.checkpoints import Retention
from everstep_protocol.codec import encode
from everstep_protocol.messages import CheckpointInfo, Progress, Stage

NOTE_SECONDS = 0.25  # between two notes to the launcher
_MOST_METRICS, _LONGEST_WHY = 24, 1000  # in a note, which has to fit the board

Tree = dict[str, Any]


class Restored(Protocol):
    """A checkpoint that was read and verified."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def shared(self) -> Any: ...
    @property
    def rank(self) -> Any: ...
    @property
    def info(self) -> CheckpointInfo: ...


class Checkpoints(Protocol):
    """What the run needs of everstep.checkpoint.Checkpointer."""

    @property
    def every_steps(self) -> int | None: ...
    @property
    def retention(self) -> Retention: ...
    @property
    def last_checkpoint(self) -> CheckpointInfo | None: ...
    @property
    def resumed_from(self) -> CheckpointInfo | None: ...
    @property
    def not_durable_since(self) -> float | None: ...
    @property
    def not_durable_why(self) -> str: ...

    def open(self, needs: Callable[[Any], Iterable[str]] = ...) -> Restored | None: ...
    def load(self, name: str) -> Restored: ...
    def save(
        self, call: int, step: int, shared: Any, rank: Any, *, keep_forever: bool = False, wait: bool = False,
        score: float | None = None,
    ) -> str: ...  # fmt: skip
    def wait(self) -> None: ...
    def close(self) -> None: ...


def checkpoints_of(environment: Environment, on_change: Callable[[], None]) -> Checkpoints | None:
    """The checkpoints of a worker's run, None if it keeps none. Called with the process group up.

    `on_change`: called, from any thread, when there is something new to tell of them.
    """
    if environment.checkpoint_uri is None:
        return None
    from everstep.checkpoint import Checkpointer

    store = None
    if environment.world_size > 1:
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
    return Checkpointer.from_environment(environment, store, on_change=on_change)


@dataclass
class Begun:
    """What the run knows of a call that begins. Both None: nothing, it runs."""

    record: Tree | None = None  # it was completed in an earlier life
    restored: Restored | None = None  # what to load: its end if it was completed, else where it was interrupted


class Run:
    def __init__(
        self,
        environment: Environment,
        *,
        seat: Seat | None = None,
        open_checkpoints: Callable[[Environment], Checkpoints | None] | None = None,
        restore_rng: bool = True,
    ) -> None:
        """
        Args:
            seat: this rank's place at the launcher's board.
            open_checkpoints: for tests: gives the run's checkpoints, instead of what the environment tells of.
            restore_rng: False only in the test that shows what the restoring of random states is good for.
        """
        self.environment = environment
        self.seat = seat
        self.steps_before = 0  # optimizer steps of the calls before the present one
        self.calls: list[Tree] = []  # records of the completed ones
        self._ordinal = 0
        self._checkpoints: Checkpoints | None = None
        self._open_checkpoints = open_checkpoints
        self._restored: Restored | None = None
        self._opened = False
        self._restore_rng = restore_rng
        self._next_note = 0.0
        self._progress: Progress | None = None  # as it was told last
        self._telling = Lock()  # the loop tells, and the thread that saves
        self._noted = (0.0, 0, 0)  # when, after how many samples and steps
        self._epoch = 0
        self._metrics: dict[str, float] = {}
        self._loss: float | None = None
        self._rate: float | None = None
        self._step_seconds: float | None = None
        self._pace_since: tuple[float, int] | None = None  # when this process told of its first step, and which

    def open(self, strategy: Strategy) -> None:
        """Once per process: find the newest checkpoint. Collective."""
        if self._opened:
            return
        self._opened = True
        if self._open_checkpoints is not None:
            self._checkpoints = self._open_checkpoints(self.environment)
        else:
            self._checkpoints = checkpoints_of(self.environment, self._tell)
        if self._checkpoints is None:
            return
        # Before the interpreter tears down what its thread uses, and before the ranks part (last in, first out).
        atexit.register(self._checkpoints.close)
        self._restored = self._checkpoints.open(_ends_of_fits)
        if self._restored is not None:
            self.calls = list(self._restored.shared["calls"])
            for record in self.calls:
                if record["kind"] == "fit" and record["checkpoint"] is None:
                    record["checkpoint"] = self._restored.name  # it could not name itself
            if strategy.rank == 0:
                note = f" ({self._restored.info.note})" if self._restored.info.note else ""
                print(f"everstep: resumed from step {self._restored.step}, {self._restored.info.uri}{note}", flush=True)

    @cached_property
    def artifacts(self) -> Artifacts | None:
        """Where files of loggers outlive this pod; None: the run has no place for them."""
        uri = self.environment.checkpoint_uri
        return Artifacts(open_storage(uri)) if uri is not None else None

    def __reduce__(self) -> Any:
        """A run belongs to its process: carried to another one, it is that one's."""
        return process_run, ()

    # Trainer calls.

    def begin(self, kind: str) -> Begun:
        """The next Trainer call of the script.

        Raises:
            ConfigurationError: in an earlier life the script made another call at this place.
        """
        ordinal, restored = self._ordinal, self._restored
        if ordinal < len(self.calls):
            record = self.calls[ordinal]
            self._expect(kind, record["kind"])
            self._ordinal += 1
            self.steps_before = record["steps"]
            name = record.get("checkpoint")
            loaded = None
            if name is not None and self._checkpoints is not None:
                same = restored is not None and restored.name == name
                loaded = restored if same else self._checkpoints.load(name)
            if loaded is not None:
                self.set_rng(loaded)
            if ordinal == len(self.calls) - 1 and restored is not None and restored.call == len(self.calls):
                self._between_calls(restored)
            return Begun(record, loaded)
        if restored is not None and restored.call == ordinal and "within" in restored.shared:
            self._expect(kind, restored.shared["within"])
            self._restored = None
            return Begun(restored=restored)
        return Begun()

    def _between_calls(self, restored: Restored) -> None:
        """The newest checkpoint was made when the last completed call ended: go on with its random state."""
        if "within" not in restored.shared:
            self.set_rng(restored)

    def _expect(self, kind: str, recorded: str) -> None:
        if kind != recorded:
            raise ConfigurationError(
                f"Trainer call number {self._ordinal + 1} of this script is {kind}, but in the run's checkpoint it is "
                f"{recorded}: the script has changed since. Give it the same order of Trainer calls again, or start "
                "with an empty checkpoint prefix"
            )

    def complete(
        self, kind: str, strategy: Strategy, steps: int, result: Tree, state: Callable[[], Tree] | None
    ) -> None:
        """The call that began last has ended: record it. `state`: what a fit leaves behind. Collective."""
        self._ordinal += 1
        self.steps_before += steps
        record: Tree = {"kind": kind, "steps": self.steps_before, **result}
        if kind == "fit":
            record["checkpoint"] = None
        self.calls.append(record)
        if self._checkpoints is not None:
            fit = kind == "fit"
            shared = {"calls": self.calls, **(state() if state is not None else {})}
            rank = {"rng": rng.get_state()}
            name = self._checkpoints.save(len(self.calls), self.steps_before, shared, rank, keep_forever=fit, wait=True)
            if fit:
                record["checkpoint"] = name
        # What has been done is all that there is, as far as anybody can tell before the script's next call.
        self.note(strategy, self.steps_before, stage=kind, max_steps=self.steps_before or None)

    # Steps of a fit.

    def enter(self, step: int, save: Callable[[bool], None]) -> None:
        """Before optimizer step `step` (1 .. of this call). Stands at the agreed step, if there is one.

        Raises:
            Stopped: the run is to stop here, and everything is saved.
        """
        seat = self.seat
        if seat is None or seat.enter(self.steps_before + step):
            return
        if seat.wait(self.steps_before + step):
            seat.stage(Stage.SAVING)
            save(True)
            raise Stopped(f"saved at step {self.steps_before + step - 1} and stopped, as was asked for")

    def due(self, step: int, saved: int) -> bool:
        """Is a checkpoint due after `step` finished steps of this call? The last one was made after `saved` (-1: none).

        A batch may take several steps, with several optimizers: it is enough that a multiple lies behind.
        """
        every = self._checkpoints.every_steps if self._checkpoints is not None else None
        if every is None or step <= 0 or step == saved:
            return False
        return (self.steps_before + step) // every > (self.steps_before + max(saved, 0)) // every

    @property
    def listens(self) -> bool:
        """Is there anything to do between two steps?"""
        kept = self._checkpoints
        return self.seat is not None or (kept is not None and (kept.every_steps is not None or bool(self.metric)))

    @property
    def keeps_checkpoints(self) -> bool:
        return self._checkpoints is not None

    @property
    def metric(self) -> str:
        """The logged value by which the best checkpoints are kept; "": there is none."""
        return self._checkpoints.retention.metric if self._checkpoints is not None else ""

    def save(self, step: int, shared: Tree, rank: Tree, wait: bool, score: float | None = None) -> None:
        """In the middle of a fit, after `step` finished steps of it. `score`: of `metric`, if it is of this state."""
        if self._checkpoints is not None:
            shared = {"calls": self.calls, "within": "fit", **shared}
            rank = {"rng": rng.get_state(), **rank}
            self._checkpoints.save(len(self.calls), self.steps_before + step, shared, rank, wait=wait, score=score)

    def set_rng(self, restored: Restored) -> None:
        """The last act of a restore: random states as they were at the save."""
        if not self._restore_rng:
            return
        if restored.rank is not None:
            rng.set_state(restored.rank["rng"])
        else:  # another world: nobody's state is this rank's
            seed = restored.shared.get("checkpoint", {}).get("everstep", {}).get("seed", 0)
            rng.seed_generators(
                rng.derive(seed, "world", self.environment.world_size, restored.step, self.environment.rank)
            )

    # What the launcher sees.

    def stage(self, stage: Stage) -> None:
        if self.seat is not None:
            self.seat.stage(stage)

    def check_stop(self) -> None:
        """For loops that take no optimizer steps.

        Raises:
            Stopped: the run is to stop; there is nothing to save that is not saved.
        """
        if self.seat is not None and self.seat.stopping:
            raise Stopped("stopped, as was asked for")

    @property
    def wants_note(self) -> bool:
        """Is it time for one, after a step? A few times a second: what is in it has to be gathered."""
        return self.seat is not None and time.monotonic() >= self._next_note

    def saw_loss(self, loss: float) -> None:
        self._loss = loss

    def note(
        self, strategy: Strategy, step: int, *, stage: str, epoch: int | None = None, max_steps: int | None = None,
        samples: int | None = None, metrics: dict[str, float] | None = None, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        """Tell the launcher how far this is: rank 0 does. `step`: of the run.

        What is None about `epoch` and `metrics` stays as it was told before.
        """
        now = time.monotonic()
        self._next_note = now + NOTE_SECONDS
        if self.seat is None or strategy.rank != 0:
            return
        if samples is not None:
            before, counted, stepped = self._noted
            if before and samples > counted:
                self._rate = (samples - counted) / (now - before)
            if before and step > stepped:
                self._step_seconds = (now - before) / (step - stepped)
            self._noted = (now, samples, step)
        began, first = self._pace_since = self._pace_since or (now, step)
        self._epoch = self._epoch if epoch is None else epoch
        self._metrics = self._metrics if metrics is None else metrics
        finite = {name: value for name, value in self._metrics.items() if math.isfinite(value)}
        self._progress = Progress(
            step=step,
            max_steps=max_steps,
            epoch=self._epoch,
            loss=self._loss,
            samples_per_second=self._rate,
            steps_per_second=(step - first) / (now - began) if step > first else None,
            step_seconds=self._step_seconds,
            learning_rate=learning_rate,
            stage=stage,
            metrics=dict(list(finite.items())[:_MOST_METRICS]),
        )
        self._tell()

    def _tell(self) -> None:
        """The note, with what is known of the checkpoints now: one may become durable in the middle of a long step."""
        if self.seat is None or self.environment.rank != 0:
            return
        with self._telling:
            progress, kept = self._progress, self._checkpoints
            last, resumed = (kept.last_checkpoint, kept.resumed_from) if kept else (None, None)
            note = {
                "progress": encode(progress) if progress else None,
                "last_checkpoint": encode(last) if last else None,
                "resumed_from": encode(replace(resumed, note=resumed.note[:_LONGEST_WHY])) if resumed else None,
                "not_durable_since": kept.not_durable_since if kept else None,
                "not_durable_why": kept.not_durable_why[:_LONGEST_WHY] if kept else "",
            }
            try:
                self.seat.note(note)
            except ValueError:  # long names of metrics, which are the part that nobody steers by
                self.seat.note({**note, "progress": encode(replace(progress, metrics={})) if progress else None})


def _ends_of_fits(shared: Tree) -> list[str]:
    """The checkpoints with the final weights of the fits that a checkpoint calls completed."""
    return [record["checkpoint"] for record in shared["calls"] if record.get("checkpoint") is not None]


@cache
def process_run() -> Run:
    """The run of this process, as its environment tells."""
    environment = Environment.read()
    seat = Board(environment.board).seat(environment.local_rank) if environment.board else None
    return Run(environment, seat=seat)
