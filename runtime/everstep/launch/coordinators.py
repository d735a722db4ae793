"""The coordinator that a launcher talks to: one that is given, or one of its own on a single machine."""

import importlib.metadata
import json
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import IO, Protocol

from everstep.errors import ConfigurationError
from everstep.launch.places import PortReservation
from everstep.launch.processes import kill, spawn
from everstep_protocol import env
from everstep_protocol.messages import Intent


class Coordinator(Protocol):
    """Where the coordinator is, and whether it is our child."""

    url: str
    token: str
    pid: int | None  # of a coordinator that is our child: it is not killed together with the workers

    def start(self) -> None: ...

    def child_ended(self, pid: int) -> None:
        """A child that is no worker has ended."""
        ...

    def close(self) -> None: ...


class GivenCoordinator:
    """Somebody else's: the operator's, or one that a person has started with `everstep coordinator`."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.pid: int | None = None

    def start(self) -> None:
        pass

    def child_ended(self, pid: int) -> None:
        pass  # a stray that was reaped

    def close(self) -> None:
        pass


class OwnCoordinator:
    """A child process for a single node. If it dies it is started again: training does not notice."""

    def __init__(self, intent: Intent, environment: Mapping[str, str]) -> None:
        """Raises ConfigurationError: this installation has no coordinator."""
        if not importlib.metadata.entry_points(group="everstep.commands", name="coordinator"):
            raise ConfigurationError(
                "this installation of everstep has no `coordinator` command: "
                "name one with --rdzv-endpoint host:port, or install everstep[operator]"
            )
        self._port = PortReservation()
        self.url = f"http://127.0.0.1:{self._port.number}"
        self.token = uuid.uuid4().hex
        self._environment = {**environment, env.TOKEN: self.token}
        words = ["coordinator", "--host", "127.0.0.1", "--port", str(self._port.number)]
        everstep = [sys.executable, "-P", "-m", "everstep.cli", *words, "--intent", json.dumps(_plain(intent))]
        # Through the bootstrap, because that makes it die with us.
        bootstrap = [sys.executable, "-P", "-m", "everstep.launch.worker", f"--parent={os.getpid()}", "--no-python"]
        self._argv = bootstrap + everstep
        self.pid: int | None = None
        self._started = 0.0
        self._log: IO[bytes] | None = None  # what it says, of interest only if it dies

    def child_ended(self, pid: int) -> None:
        if pid != self.pid:
            return
        self.pid = None
        said = ""
        if self._log is not None:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace").rstrip()
            self._log.close()
        print(f"everstep: the coordinator has died and is started again:\n{said}", file=sys.stderr, flush=True)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - self._started)))  # never in a tight loop
        self.start()

    def close(self) -> None:
        if self.pid is not None:
            kill(self.pid, signal.SIGKILL)  # the run is over for us, and with it for its coordinator
            self.pid = None
        if self._log is not None:
            self._log.close()

    def start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as it lives
        self.pid = spawn(self._argv, self._environment, self._log.fileno(), self._log.fileno())
        self._started = time.monotonic()


def _plain(intent: Intent) -> dict[str, int]:
    names = ("nodes", "min_nodes", "max_restarts", "retry_start")
    return {name: getattr(intent, name) for name in names}


def address_towards(url_host: str, port: int) -> str:
    """The address of this machine on the way to the coordinator: where other nodes will reach it, too."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((url_host, port))  # sends nothing: it only picks a route
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        return socket.gethostname()
