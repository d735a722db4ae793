"""Writes `.ckpt` files behind the training's back: it waits for a copy into kept memory, a thread does the rest."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch

from everstep.checkpoint import ckpt
from everstep.checkpoint.background import give_way
from everstep.errors import EverstepError, StorageError


class CkptWriter:
    """Used from one thread. Work is done in the order in which it is given; after a failure none is, until it is told.

    So a file is never deleted in favour of one that could not be written.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}
        self._work: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._busy = threading.Semaphore(0)
        self._given = 0  # pieces of work, not yet known to be done
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __reduce__(self) -> Any:
        """A writer belongs to its process: carried to another one, it is a new one."""
        return CkptWriter, ()

    def save(self, places: Iterable[str], checkpoint: ckpt.Tree) -> None:
        """Copy the state; its files follow.

        Raises:
            StorageError: an earlier one could not be written.
            ConfigurationError: the state holds something that is no data.
        """
        self.wait()  # the kept memory is of one state
        tree, tensors = ckpt.data_of(checkpoint)
        copies = self._copied(tensors)
        for place in places:
            self.later(lambda place=place: ckpt.write(place, tree, copies))  # type: ignore[misc]

    def _copied(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Into the memory of the save before, where it fits."""
        before, self._kept = self._kept, {}
        for name, tensor in tensors.items():
            kept = before.pop(name, None)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._kept[name] = kept.copy_(tensor)
        return self._kept

    def later(self, work: Callable[[], Any]) -> None:
        """Do it after everything that was given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="everstep-ckpt-writer", daemon=True)
            self._thread.start()
        self._given += 1
        self._work.put(work)

    def wait(self) -> None:
        """Until all that was given is done.

        Raises:
            StorageError: something could not be.
        """
        while self._given:
            self._busy.acquire()
            self._given -= 1
        error, self._error = self._error, None
        if isinstance(error, EverstepError):
            raise error
        if error is not None:
            raise StorageError(f"a checkpoint file could not be written: {error}") from error

    def _run(self) -> None:
        give_way()
        while True:
            work = self._work.get()
            try:
                if self._error is None:
                    work()
            except BaseException as error:
                self._error = error
            finally:
                del work  # with the copies that it knows
                self._busy.release()
