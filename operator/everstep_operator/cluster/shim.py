"""The process above a local pod, as a container has one: it outlives `everstep run`, ends the pod if that stays away.

    python -I -S shim.py <pod folder>

Standard library only, started by its path without site-packages: there is one per pod, and it shall cost nothing. The
pod's folder is the whole interface (cluster/local.py is the other side of it):

    spec.json         read once: command, env, cwd, lease (a file), lease_seconds, lease_grace
    shim.json         written: identity of the shim
    process.json      written: identity of the pod's first process
    delete.json       read on SIGUSR1 and at each tick: {"deadline": CLOCK_MONOTONIC}; SIGTERM now, SIGKILL then
    exit.json         written last: {"exit_code", "signal", "time", "by": "itself" | "delete" | "lease"}
    termination.json  written by the pod, or by the shim if the command cannot be started
    stdout.log        both output streams of the pod
    shim.log          empty, unless this program is wrong

An identity is {"pid", "started", "boot"}: a pid alone may belong to somebody else by now. The lease file holds the
identity of the `everstep run` in charge; the lease runs out when that process has been gone for lease_seconds.
"""

import ctypes
import json
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_WAKERS = {signal.SIGCHLD, signal.SIGUSR1}
_TICK = 1.0  # seconds between two looks at the lease
_NOT_FOUND, _NO_FOLDER = "CommandNotFound", "Configuration"  # everstep_protocol.reasons, which is not on the path here


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


BOOT = boot_id()


def identity(pid: int) -> dict[str, object] | None:
    """What tells this process from a later one with the same pid; None if it is gone (a zombie is gone)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else {"pid": pid, "started": int(fields[19]), "boot": BOOT}


def alive(who: dict[str, object] | None) -> bool:
    return who is not None and isinstance(who.get("pid"), int) and identity(who["pid"]) == who  # type: ignore[arg-type]


def read(path: str) -> dict[str, object] | None:
    """A JSON object from a file; None if there is none (yet)."""
    try:
        with open(path) as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(path: str, value: object) -> None:
    """Whole or not at all, readable by the owner only: environments hold secrets."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):  # half of it, on a full disk
            os.unlink(temporary)
        raise


def descendants(root: int) -> set[int]:
    """All processes below `root`, as /proc shows them now."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


class Shim:
    """Starts the pod's first process, waits for its end, and leaves nothing of the pod behind."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        spec = read(f"{folder}/spec.json")
        if spec is None:
            raise SystemExit(f"{folder}/spec.json cannot be read")
        self.command: list[str] = spec["command"]  # type: ignore[assignment]
        self.env: dict[str, str] = spec["env"]  # type: ignore[assignment]
        self.cwd = str(spec["cwd"])
        self.lease = str(spec["lease"])
        self.lease_seconds = float(spec["lease_seconds"])  # type: ignore[arg-type]
        self.lease_grace = float(spec["lease_grace"])  # type: ignore[arg-type]
        self.main = 0
        self.status: int | None = None  # of the first process, as waitpid tells it
        self.deadline: float | None = None  # SIGKILL then; None: nobody wants it to end
        self.by = "itself"
        self.holder_seen = time.monotonic()

    def start(self) -> dict[str, object] | None:
        """Fork and exec the command. What went wrong, as a Failure in JSON."""
        log = os.open(f"{self.folder}/stdout.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        failed, report = os.pipe()  # closed by a successful exec
        self.main = os.fork()
        if self.main == 0:
            self._become_the_pod(log, report)
        os.close(log)
        os.close(report)
        write(f"{self.folder}/process.json", identity(self.main))
        with open(failed) as pipe:
            text = pipe.read()
        return json.loads(text) if text else None

    def _become_the_pod(self, log: int, report: int) -> None:
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a dead shim can look after nothing
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # an ignored signal would stay ignored through exec
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.cwd)
            os.execvpe(self.command[0], self.command, self.env)
        except BaseException as error:
            message = f"the pod cannot start: {self.command[0]}: {getattr(error, 'strerror', None) or error}"
            reason = _NOT_FOUND
            if not os.path.isdir(self.cwd):
                message, reason = f"the pod cannot start: its working directory {self.cwd} is not there", _NO_FOLDER
            os.write(report, json.dumps({"reason": reason, "message": message, "exit_code": 127}).encode())
        finally:
            os._exit(127)

    def tend(self) -> None:
        """Until the first process has ended: reap, obey deletes, watch the lease."""
        while self.reap() and self.status is None:
            self.look()
            now = time.monotonic()
            if self.deadline is not None and now >= self.deadline:
                self.kill()
                continue
            pause = _TICK if self.deadline is None else min(_TICK, self.deadline - now)
            signal.sigtimedwait(_WAKERS, pause)

    def reap(self) -> bool:
        """Collect who has ended; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.main:
                self.status = status

    def look(self) -> None:
        """Has somebody asked for the end, or is nobody there any more who could?"""
        now = time.monotonic()
        delete = read(f"{self.folder}/delete.json")
        if delete is not None:
            self.end(float(delete["deadline"]), "delete")  # type: ignore[arg-type]
        if alive(read(self.lease)):
            self.holder_seen = now
        elif now - self.holder_seen >= self.lease_seconds:
            self.end(now + self.lease_grace, "lease")

    def end(self, deadline: float, by: str) -> None:
        if self.deadline is None:
            self.by = by
            os.kill(self.main, signal.SIGTERM)  # not yet reaped, so the pid is still its own
            self.deadline = deadline
        self.deadline = min(self.deadline, deadline)

    def kill(self) -> None:
        """SIGKILL all that is below; orphans come up to this process, the subreaper, and are found by the next look."""
        while True:
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
            if not self.reap():
                return
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)

    def finish(self, refusal: dict[str, object] | None) -> None:
        """The first process is gone: so is the pod. Write down how it ended."""
        self.kill()
        status = self.status or 0
        signaled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = 128 + signaled if signaled is not None else os.WEXITSTATUS(status)
        record = {"exit_code": code, "signal": signaled, "time": time.time(), "by": self.by}
        for _ in range(30):  # a full disk may have room again
            try:
                if refusal is not None:
                    write(f"{self.folder}/termination.json", refusal)
                write(f"{self.folder}/exit.json", record)
                return
            except FileNotFoundError:
                return  # somebody removed the state folder: there is nobody to tell
            except OSError:
                time.sleep(1)


def main() -> int:
    folder = os.path.abspath(sys.argv[1])
    ready, tell = os.pipe()
    if os.fork() != 0:  # the caller waits for this one: when it ends, the pod has been started
        os.close(tell)
        return 0 if os.read(ready, 1) else 1
    os.close(ready)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_WAKERS, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream, target in enumerate((null, null, os.open(f"{folder}/shim.log", os.O_WRONLY | os.O_CREAT, 0o600))):
        os.dup2(target, stream)
    shim = Shim(folder)
    write(f"{folder}/shim.json", identity(os.getpid()))
    refusal = shim.start()
    os.write(tell, b"+")
    os.close(tell)
    shim.tend()
    shim.finish(refusal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
