"""Worker processes: started in sessions of their own, reaped with what they leave behind, killed to the last one.

The launcher is a child subreaper: a descendant whose parent dies becomes our child, wherever it has put itself. So
"everything below this process" is a complete answer to what has to be killed, sessions and groups notwithstanding.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Command:
    """What the user wants to run: `python target …`, `python -m target …`, or a program."""

    target: str
    arguments: tuple[str, ...] = ()
    kind: str = "script"  # script | module | program

    @property
    def words(self) -> list[str]:
        """As `everstep launch` and the worker's bootstrap spell it."""
        flag = {"script": [], "module": ["-m"], "program": ["--no-python"]}[self.kind]
        return [*flag, self.target, *self.arguments]


class Spawner:
    """How a worker process comes to be. This one starts a fresh interpreter; call it from the main thread only.

    The main thread, because the kernel's "kill me when my parent dies" watches the thread that forked.
    """

    def __init__(self, command: Command) -> None:
        self.command = command

    def start(self, environment: Mapping[str, str], stdout: int | None, stderr: int | None) -> int:
        """The pid of a new worker, leader of a session of its own. `stdout`, `stderr`: descriptors, None: ours.

        Raises:
            OSError: no process could be made.
        """
        # -P: the current folder must not stand in front of the library while the bootstrap imports its own modules.
        bootstrap = [sys.executable, "-P", "-m", "everstep.launch.worker", f"--parent={os.getpid()}"]
        return spawn([*bootstrap, *self.command.words], environment, stdout, stderr)


def spawn(
    argv: Sequence[str], environment: Mapping[str, str], stdout: int | None = None, stderr: int | None = None
) -> int:
    """Start a program in a session of its own. Signals that Python ignores get their defaults back."""
    streams = [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in ((stdout, 1), (stderr, 2)) if fd is not None]
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=streams,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    )


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Get SIGKILL as soon as the parent is gone, however it goes. Exits at once if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def reap() -> dict[int, int]:
    """All children that have ended since the last call: pid -> wait status. Strays that we inherited are among them."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def descendants(spared: Collection[int] = ()) -> set[int]:
    """Every living process below this one, except `spared` and what is below those. Zombies do not count."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything, parentheses and blanks included.
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        children.setdefault(int(parent), []).append((int(folder.name), state))
    found: set[int] = set()
    below = [os.getpid()]
    while below:
        for pid, state in children.get(below.pop(), ()):
            if pid in spared:
                continue
            below.append(pid)
            if state not in "ZX":
                found.add(pid)
    return found


def kill_descendants(spared: Collection[int] = ()) -> int:
    """SIGKILL to everything below us but `spared`. Returns how many there were: call again until it is 0.

    Again, because a process may fork while we count.
    """
    found = descendants(spared)
    for pid in found:
        kill(pid)
    return len(found)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
