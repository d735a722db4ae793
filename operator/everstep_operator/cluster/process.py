"""A process group that outlives us, seen from our side: start it under a shim, ask how it is, ask it to end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everstep_operator.cluster import shim

#: Seconds that `everstep run` may be away before its processes end, and how long they then have to save. With the
#: embedded S3 server, which has to outlive their saving, all of it lies within a minute.
LEASE_SECONDS = 40.0
LEASE_GRACE = 8.0

#: A shim that has not told its identity by then will never do so: whoever started it died in between.
_START_SECONDS = 5.0


@dataclass(frozen=True)
class ProcessState:
    phase: str  # Pending | Running | Succeeded | Failed
    ending: bool = False  # somebody asked for its end
    exit_code: int | None = None  # 128 + signal for one that died of a signal
    by_lease: bool = False  # it ended because no `everstep run` was there
    rebooted: bool = False  # the machine went down with it
    stillborn: bool = False  # whoever was starting it died in between
    shim_pid: int | None = None

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


class Process:
    """One process group, all of whose state is its folder; cluster/shim.py says what lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def log(self) -> Path:
        return self.folder / "stdout.log"

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        lease: Path,
        lease_seconds: float = LEASE_SECONDS,
        lease_grace: float = LEASE_GRACE,
    ) -> None:
        """Start it; on return it runs, or its end is recorded.

        Raises:
            OSError: the folder cannot be written. subprocess.SubprocessError: the shim did not come up.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in ("shim.json", "process.json", "delete.json", "exit.json", "termination.json"):
            (self.folder / old).unlink(missing_ok=True)
        spec = {
            "command": list(command),
            "env": dict(env),
            "cwd": str(cwd),
            "lease": str(lease),
            "lease_seconds": lease_seconds,
            "lease_grace": lease_grace,
        }
        shim.write(str(self.folder / "spec.json"), spec)
        subprocess.run(
            [sys.executable, "-I", "-S", str(shim.__file__), str(self.folder)], check=True, stdin=subprocess.DEVNULL
        )

    def state(self) -> ProcessState:
        exited = self._read("exit.json")
        who = self._read("shim.json")
        if exited is None and who is not None and not shim.alive(who):
            exited = self._read("exit.json")  # it may have been written between the two looks
            if exited is None:
                # The shim was killed, and by PDEATHSIG the pod with it.
                return ProcessState("Failed", self._ending(), rebooted=who.get("boot") != shim.BOOT)
        if exited is not None:
            code = int(exited["exit_code"])
            phase = "Succeeded" if code == 0 else "Failed"
            return ProcessState(phase, self._ending(), code, by_lease=exited["by"] == "lease")
        if who is None:
            if self._age() < _START_SECONDS:
                return ProcessState("Pending", self._ending())
            return ProcessState("Failed", self._ending(), stillborn=True)
        return ProcessState("Running", self._ending(), shim_pid=int(who["pid"]))

    def exists(self) -> bool:
        return (self.folder / "spec.json").exists()

    def end(self, grace_seconds: float) -> None:
        """SIGTERM, SIGKILL after the grace. Called again, it can only shorten the grace."""
        deadline = time.monotonic() + grace_seconds
        earlier = self._read("delete.json")
        if earlier is not None:
            deadline = min(deadline, float(earlier["deadline"]))
        shim.write(str(self.folder / "delete.json"), {"deadline": deadline})
        who = self._read("shim.json")
        if who is not None and shim.alive(who):
            os.kill(int(who["pid"]), signal.SIGUSR1)  # look now, not at the next tick

    def _age(self) -> float:
        """Seconds since the first of its files was written."""
        written = [path.stat().st_mtime for path in self.folder.glob("*")]
        return time.time() - min(written, default=time.time())

    def _ending(self) -> bool:
        return (self.folder / "delete.json").exists()

    def _read(self, name: str) -> dict[str, Any] | None:
        return shim.read(str(self.folder / name))


def kill_remains(marks: Mapping[str, str]) -> None:
    """SIGKILL every process that has all of `marks` in its environment: what a killed shim could not end."""
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
