"""Where the streams of this node's ranks go: straight through, with a prefix, or into one file per rank."""

import os
import selectors
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _Pipe:
    """A stream that the pump forwards: to a descriptor of ours, line by line if it has a prefix, and to a file."""

    forward: int
    prefix: bytes = b""
    file: int | None = None
    pending: bytes = b""
    done: threading.Event = field(default_factory=threading.Event)


class Output:
    """Without a log folder: a single rank writes straight to our own streams (a terminal stays a terminal), several
    ranks get the prefix `[rank1]:` on each line. With one: each rank's streams go to `rank<rank>.<generation>.log`
    there, and those of the node's first rank to ours as well.
    """

    def __init__(self, log_dir: Path | None) -> None:
        """Raises OSError: the log folder cannot be made."""
        self.log_dir = log_dir
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
        self._pipes: list[_Pipe] = []
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None

    def open(self, rank: int, local_rank: int, nproc: int, generation: int) -> tuple[int | None, int | None]:
        """Descriptors for a new worker's stdout and stderr, to be closed once it has started. None: ours.

        Raises:
            OSError: the log file cannot be opened.
        """
        if self.log_dir is None:
            if nproc == 1:
                return None, None
            prefix = f"[rank{rank}]: ".encode()
            return self._pipe(1, prefix), self._pipe(2, prefix)
        file = os.open(self._file(rank, generation), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if local_rank:
            return file, file
        return self._pipe(1, file=file), self._pipe(2, file=os.dup(file))

    def append(self, rank: int, generation: int, text: str) -> None:
        """Add a rank's traceback to its log file; without files the launcher shows the root cause only."""
        if self.log_dir is not None and text:
            with self._file(rank, generation).open("a") as file:
                file.write(text)

    def drain(self, timeout: float) -> None:
        """Wait until everything that dead workers wrote has been forwarded, at most `timeout` seconds per stream."""
        sys.stdout.flush()
        for pipe in self._pipes:
            if not pipe.done.wait(timeout):
                break  # somebody who is not ours holds the other end
        self._pipes = [pipe for pipe in self._pipes if not pipe.done.is_set()]

    def _file(self, rank: int, generation: int) -> Path:
        assert self.log_dir is not None
        return self.log_dir / f"rank{rank}.{generation}.log"

    def _pipe(self, forward: int, prefix: bytes = b"", file: int | None = None) -> int:
        source, sink = os.pipe()
        pipe = _Pipe(forward, prefix, file)
        self._pipes.append(pipe)
        self._selector.register(source, selectors.EVENT_READ, pipe)
        if self._thread is None:
            # A thread, because a reader of our stdout that stands still must not stop the supervision of the workers.
            self._thread = threading.Thread(target=self._pump, name="everstep-output", daemon=True)
            self._thread.start()
        return sink

    def _pump(self) -> None:
        while True:
            # With a timeout: epoll takes new streams while it waits, other selectors do not.
            for key, _ in self._selector.select(1.0):
                pipe: _Pipe = key.data
                chunk = os.read(key.fd, 65536)
                if pipe.file is not None:
                    _write(pipe.file, chunk)
                _write(pipe.forward, _with_prefix(pipe, chunk) if pipe.prefix else chunk)
                if not chunk:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                    if pipe.file is not None:
                        os.close(pipe.file)
                    pipe.done.set()


def _with_prefix(pipe: _Pipe, chunk: bytes) -> bytes:
    """Complete lines, each with the prefix; the rest waits. An empty chunk is the end: the rest goes out."""
    text = pipe.pending + chunk
    lines = text.splitlines(keepends=True)
    complete = lines if not chunk else [line for line in lines if line.endswith((b"\n", b"\r"))]
    pipe.pending = text[sum(map(len, complete)) :]
    if complete and not complete[-1].endswith((b"\n", b"\r")):
        complete[-1] += b"\n"
    return b"".join(pipe.prefix + line for line in complete)


def _write(descriptor: int, data: bytes) -> None:
    """All of it, or as much as the other side takes: a closed stdout or a full disk must not stop the ranks."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError:
            return
