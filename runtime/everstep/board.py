"""The board: shared memory between a launcher and the ranks of its node.

A rank writes the step that it enters and then reads the limit; the launcher writes the limit and then reads the steps.
With a full memory barrier between write and read on the launcher's side (membarrier(2) puts one into every running
thread of the machine) one of the two always sees the other, at no cost on the hot path: no collective, no system call.

Layout, 64-bit words: [magic, nproc, limit, proposal, committed, (step, stage, pid) per local rank], then one region of
NOTE_BYTES per local rank: a sequence word (odd while being written), a length word and JSON (progress, checkpoints).
"""

import ctypes
import json
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

from everstep_protocol.messages import Stage

NO_LIMIT = 2**62
NOTE_BYTES = 8192

_MAGIC = 0x45565253_00000001
_LIMIT, _PROPOSAL, _COMMITTED, _SLOTS = 2, 3, 4, 5
_STEP, _STAGE, _PID, _SLOT_WORDS = 0, 1, 2, 3
_STAGES = tuple(Stage)


def _size(nproc: int) -> int:
    return (_SLOTS + nproc * _SLOT_WORDS) * 8 + nproc * NOTE_BYTES


class Board:
    """Both sides' view of the shared memory. The launcher creates one per round, ranks open it by path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open an existing board.

        Raises:
            OSError: no such file. ValueError: the file is not a board.
        """
        self.path = Path(path)
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map)[: len(self._map) // 8 * 8].cast("q")
        if self._words[0] != _MAGIC:
            raise ValueError(f"{path} is not a board of this version of everstep")
        self.nproc = self._words[1]
        self._notes = (_SLOTS + self.nproc * _SLOT_WORDS) * 8

    @classmethod
    def create(cls, path: str | os.PathLike[str], nproc: int) -> "Board":
        words = [_MAGIC, nproc, NO_LIMIT, 0, 0] + [0] * (nproc * _SLOT_WORDS)
        blob = b"".join(word.to_bytes(8, "little") for word in words)
        Path(path).write_bytes(blob.ljust(_size(nproc), b"\0"))
        return cls(path)

    # The launcher's side.

    def propose(self, proposal: int, step: int) -> tuple[bool, int]:
        """Set the limit to `step` and say whether every rank of this node can still keep it, and its furthest step."""
        self._words[_COMMITTED] = 0
        self._words[_PROPOSAL] = proposal
        self._words[_LIMIT] = step
        _barrier()
        furthest = self.furthest()
        return furthest <= step, furthest

    def commit(self) -> None:
        """Every node has accepted: ranks at the limit may act."""
        self._words[_COMMITTED] = 1

    def lift(self) -> None:
        """Take the limit away; ranks that wait at it go on."""
        self._words[_LIMIT] = NO_LIMIT

    def furthest(self) -> int:
        return max(self.step(local_rank) for local_rank in range(self.nproc))

    def step(self, local_rank: int) -> int:
        return self._words[_SLOTS + local_rank * _SLOT_WORDS + _STEP]

    def stage(self, local_rank: int) -> Stage:
        return _STAGES[self._words[_SLOTS + local_rank * _SLOT_WORDS + _STAGE]]

    def pid(self, local_rank: int) -> int:
        """0 until the rank has opened the board."""
        return self._words[_SLOTS + local_rank * _SLOT_WORDS + _PID]

    def note(self, local_rank: int) -> dict[str, Any] | None:
        """The rank's latest note; None if it has written none or is writing one right now."""
        word = (self._notes + local_rank * NOTE_BYTES) // 8
        before, length = self._words[word], self._words[word + 1]
        if before == 0 or before % 2:
            return None
        start = word * 8 + 16
        text = bytes(self._map[start : start + length])
        if self._words[word] != before:
            return None
        note: dict[str, Any] = json.loads(text)
        return note

    # The ranks' side.

    def seat(self, local_rank: int) -> "Seat":
        return Seat(self, local_rank)

    def close(self) -> None:
        self._words.release()
        self._map.close()


class Seat:
    """One rank's place at the board."""

    def __init__(self, board: Board, local_rank: int) -> None:
        if not 0 <= local_rank < board.nproc:
            raise ValueError(f"local rank {local_rank} has no place on a board for {board.nproc}")
        self.board = board
        self._words = board._words
        self._slot = _SLOTS + local_rank * _SLOT_WORDS
        self._note = (board._notes + local_rank * NOTE_BYTES) // 8
        self._lock = threading.Lock()  # notes come from the loop and from the thread that saves
        self._words[self._slot + _PID] = os.getpid()

    def enter(self, step: int) -> bool:
        """Hot path: about to execute optimizer step `step` (1 ..). False: it lies past the limit, call `wait` first."""
        self._words[self._slot] = step
        return step <= self._words[_LIMIT]

    def wait(self, step: int, poll_seconds: float = 0.001) -> bool:
        """Stand at the limit until it is lifted or raised (False: go on with `step`) or committed (True: act now)."""
        self._words[self._slot] = step - 1  # take the entry back, or the launcher would count this rank as past it
        self.stage(Stage.AT_LIMIT)
        while True:
            # First the commit, then the limit: a commit belongs to the limit that was written before it, so a limit
            # read after it is the final one. The other way round a rank could act at a limit that has moved on.
            committed = self._words[_COMMITTED]
            if step <= self._words[_LIMIT]:
                if self.enter(step):
                    self.stage(Stage.TRAINING)
                    return False
                self._words[self._slot] = step - 1
            elif committed:
                return True
            time.sleep(poll_seconds)

    @property
    def stopping(self) -> bool:
        """A stop is committed. Loops that take no optimizer steps (test, predict) leave at their next batch."""
        return bool(self._words[_COMMITTED])

    def stage(self, stage: Stage) -> None:
        self._words[self._slot + _STAGE] = _STAGES.index(stage)

    def note(self, note: dict[str, Any]) -> None:
        """Leave a note for the launcher: {"progress": Progress, "last_checkpoint": …, "resumed_from": …, …} as JSON.

        Raises:
            ValueError: longer than NOTE_BYTES.
        """
        text = json.dumps(note, separators=(",", ":")).encode()
        if len(text) > NOTE_BYTES - 16:
            raise ValueError(f"a note of {len(text)} bytes does not fit the board's {NOTE_BYTES - 16}")
        words, start = self._words, self._note * 8 + 16
        with self._lock:
            words[self._note] += 1
            words[self._note + 1] = len(text)
            self.board._map[start : start + len(text)] = text
            words[self._note] += 1


def _barrier() -> None:
    """A full memory barrier in every thread of the machine that runs now."""
    membarrier, command_global = {"x86_64": 324, "aarch64": 283}.get(os.uname().machine, -1), 1
    if membarrier < 0 or ctypes.CDLL(None, use_errno=True).syscall(membarrier, command_global, 0, 0) != 0:
        time.sleep(0.01)  # store buffers drain in microseconds; where the system call is missing, time does its work
