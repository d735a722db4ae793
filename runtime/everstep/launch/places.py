"""Two things that a round needs from this machine: a free port, and a folder in shared memory."""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path


class PortReservation:
    """A TCP port that nobody else gets while this object lives, and that rank 0 can still listen on.

    Bound, not listening, address reuse allowed: the kernel hands the number to no one who asks for just any, and lets
    a second socket with the same option listen there.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", 0))
        self.number: int = self._socket.getsockname()[1]

    def __del__(self) -> None:
        self._socket.close()


class WorkFolder:
    """Boards and failure records of one launcher, in memory where the machine has a place for that.

    A launcher that was killed cannot remove its folder: the next one does. Who lives holds a lock on his.
    """

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        prefix = f"everstep-{os.getuid()}-"
        for old in parent.glob(f"{prefix}*"):
            _remove_if_abandoned(old)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError):  # locked: its launcher lives; gone: somebody was quicker
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(lock).st_mtime > 60:  # a young one may be about to be locked
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
