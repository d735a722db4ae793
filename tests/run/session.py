"""`everstep run` as a person starts it, and what can be seen of it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

TINY = Path(__file__).with_name("tiny.py")
EVERSTEP = Path(sys.executable).parent / "everstep"


class Session:
    """One manifest with its state folder; `start` may be called again after the end of what it started."""

    def __init__(self, folder: Path, *args: str, nodes: int = 2, lease: float = 40.0, **spec: Any) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.checkpoints = folder / "checkpoints"
        self.lease = lease
        self.process: subprocess.Popen[str] | None = None
        self.manifest = folder / "run.yaml"
        self.spec: dict[str, Any] = {
            "numNodes": nodes,
            "trainer": {"command": ["python", str(TINY)], "args": list(args)},
            "checkpoint": {"uri": f"file://{self.checkpoints}"},
            "failurePolicy": {"backoff": {"initialSeconds": 0.1}},
            **spec,
        }
        self.write()

    def write(self, **changes: Any) -> None:
        """The manifest, with these fields of spec changed."""
        self.spec |= changes
        document = {
            "apiVersion": "everstep.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "tiny"},
            "spec": self.spec,
        }
        self.manifest.write_text(yaml.safe_dump(document))

    def start(self, *, under: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
        """`under`: a command that becomes `everstep run`, such as env."""
        command = [EVERSTEP, "run", "-f", self.manifest, "--state-dir", self.state, "--lease", str(self.lease)]
        command = [*under, *command]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        self.process = subprocess.Popen(command, text=True, **streams)
        return self.process

    def finish(self) -> tuple[int, str]:
        """Its exit status and all that it has printed."""
        assert self.process is not None
        out, _ = self.process.communicate(timeout=100)
        return self.process.returncode, out

    def run(self) -> tuple[int, str]:
        self.start()
        return self.finish()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to `everstep run` itself."""
        self.signal(signal.SIGKILL)
        self.finish()

    @property
    def status(self) -> dict[str, Any]:
        return self.object.get("status", {})  # type: ignore[no-any-return]

    @property
    def object(self) -> dict[str, Any]:
        try:
            read: dict[str, Any] = json.loads((self.state / "run.json").read_text())
        except (OSError, ValueError):
            return {}
        return read

    @property
    def step(self) -> int:
        return (self.status.get("progress") or {}).get("step", 0)  # type: ignore[no-any-return]

    def saved(self) -> list[int]:
        return [json.loads(path.read_text()) for path in sorted(self.checkpoints.glob("*.json"))]

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.state.glob("pods/*/stdout.log")))

    def ranks(self) -> dict[int, int]:
        """Pids of the worker processes by rank."""
        found = {}
        for pid, variables in self._processes().items():
            if b"RANK" in variables and b"EVERSTEP_BOARD" in variables:
                found[int(variables[b"RANK"])] = pid
        return found

    def pids(self) -> set[int]:
        """Of everything that belongs to the run, by its uid or state folder in environment or command line."""
        return set(self._processes())

    def _processes(self) -> dict[int, dict[bytes, bytes]]:
        folder = str(self.state).encode()
        uid = self.object.get("metadata", {}).get("uid", "").encode() or folder
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(entry.name) != os.getpid() and (uid in environment or folder in environment + command):
                pairs = (pair.partition(b"=") for pair in environment.split(b"\0"))
                found[int(entry.name)] = {name: value for name, _, value in pairs}
        return found

    def until(self, question: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not question():
            assert time.monotonic() < deadline, f"it did not happen; status {self.status}; logs:\n{self.logs()}"
            time.sleep(0.02)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            with self.process:  # waits, and closes its pipes
                pass
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
