"""Where the streams of this node's ranks go: straight through, with a prefix, or into one file per rank."""

import contextlib
import os
import selectors
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from everstep_protocol.reasons import LAST_LINES, LINE_LIMIT

#: Of a rank's output so much is remembered for its failure.
_RECENT_BYTES = 2 * LAST_LINES * LINE_LIMIT
_LAST_WORD_SECONDS = 0.1


@dataclass
class _Pipe:
    """A stream that the pump forwards: to a descriptor of ours, line by line if it has a prefix, and to a file."""

    forward: int
    prefix: bytes = b""
    file: int | None = None
    recent: bytearray = field(default_factory=bytearray)  # the end of what the rank wrote, to both streams
    pending: bytes = b""
    done: threading.Event = field(default_factory=threading.Event)


class Output:
    """Without a log folder: a single rank writes straight to our own streams (a terminal stays a terminal), several
    ranks get the prefix `[rank1]:` on each line. With one: each rank's streams go to `rank<rank>.<generation>.log`
    there, and those of the node's first rank to ours as well.
    """

    def __init__(self, log_dir: Path | None, remember: bool = False) -> None:
        """`remember`: the end of a single rank's output is wanted, too, so it goes through a pipe.

        Raises:
            OSError: the log folder cannot be made.
        """
        self.log_dir = log_dir
        self.remember = remember
        self._recent: dict[int, tuple[bytearray, list[_Pipe]]] = {}  # by rank: of its latest worker
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
        self._recent.pop(rank, None)
        if self.log_dir is None:
            if nproc == 1 and not self.remember:
                return None, None
            prefix = f"[rank{rank}]: ".encode() if nproc > 1 else b""
            return self._pipe(1, rank, prefix), self._pipe(2, rank, prefix)
        file = os.open(self._file(rank, generation), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if local_rank:
            return file, file
        return self._pipe(1, rank, file=file), self._pipe(2, rank, file=os.dup(file))

    def last_lines(self, rank: int, generation: int) -> tuple[str, ...]:
        """What a dead rank printed last, as far as that went through here or into its log file."""
        recent, pipes = self._recent.get(rank, (bytearray(), []))
        for pipe in pipes:
            pipe.done.wait(_LAST_WORD_SECONDS)  # not longer: its children may hold the other end
        text = bytes(recent)
        if not text and self.log_dir is not None:
            with contextlib.suppress(OSError), self._file(rank, generation).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _RECENT_BYTES))
                text = file.read()
        lines = text.decode(errors="replace").splitlines()
        return tuple(line[:LINE_LIMIT] for line in lines if line.strip())[-LAST_LINES:]

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

    def _pipe(self, forward: int, rank: int, prefix: bytes = b"", file: int | None = None) -> int:
        source, sink = os.pipe()
        recent, pipes = self._recent.setdefault(rank, (bytearray(), []))
        pipe = _Pipe(forward, prefix, file, recent)
        pipes.append(pipe)
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
                pipe.recent += chunk
                del pipe.recent[:-_RECENT_BYTES]
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
