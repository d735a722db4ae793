"""What the launcher's tests share: a coordinator that follows a script, launchers as real processes, waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from everstep_protocol import codec, env
from everstep_protocol.messages import (
    SYNC,
    Action,
    AgentState,
    Directive,
    Limit,
    Round,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED
from everstep_protocol.version import HEADER, PROTOCOL_VERSION

TOKEN = "a-token"
PATIENCE = 60.0  # seconds; only for what should never take so long

T = TypeVar("T")

# An all-reduce per step, a checkpoint by rank 0, and an accident in the first round.
TORCH_SCRIPT = """
import json, os
from pathlib import Path
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
saved = Path("checkpoint.json")
first = not saved.exists()
step = 0 if first else json.loads(saved.read_text())["step"]
while step < 6:
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 2
    step += 1
    if rank == 0:
        saved.write_text(json.dumps({"step": step}))
    dist.barrier()
    if first and rank == 1 and step == 3:
        os._exit(7)
print("done", rank, step, "first" if first else "resumed", flush=True)
dist.destroy_process_group()
"""


def eventually(question: Callable[[], T], what: str = "") -> T:
    """The first true answer."""
    until = time.monotonic() + PATIENCE
    while not (answer := question()):
        assert time.monotonic() < until, f"never happened: {what or question}"
        time.sleep(0.01)
    return answer


def alive(pid: int) -> bool:
    """Is there such a process, and is it no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def environment(**more: str) -> dict[str, str]:
    """A clean one: nothing of ours and nothing of torchrun's leaks in from whoever runs the tests."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("EVERSTEP_", "PET_", "OMP_", "PYTHONHASHSEED"))}
    return {**base, "PYTHONSAFEPATH": "", **more}


def run_round(state: AgentState, generation: int = 1, limit: Limit | None = None) -> Directive:
    """Have workers, alone in the world."""
    round = Round(generation, 0, state.nproc, 0, 1, "127.0.0.1", state.port, restarts=generation - 1)
    return Directive(version=generation, action=Action.RUN, round=round, limit=limit)


def wait(version: int = 1) -> Directive:
    return Directive(version=version, action=Action.WAIT)


def leave(status: int, message: str = "") -> Directive:
    return Directive(version=99, action=Action.EXIT, exit_code=status, message=message)


def one_round(state: AgentState) -> Directive:
    """The simplest policy: one generation, whatever comes of it."""
    match state.workers:
        case Workers.SUCCEEDED:
            return leave(0)
        case Workers.STOPPED:
            return leave(EXIT_STOPPED)
        case Workers.FAILED:
            return replace(leave(1, "gave up"), print_failure=state.failure)
    return run_round(state)


class ScriptedCoordinator:
    """POST /v1/sync answered by a function of the state. Answers that repeat the last one come slowly (long poll)."""

    def __init__(self, policy: Callable[[AgentState], Directive] = one_round, port: int = 0) -> None:
        self.states: list[AgentState] = []
        self.policy = policy
        self.status = 200
        self.version = str(PROTOCOL_VERSION)
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            last: Directive | None = None

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                assert self.path == SYNC
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self.answer(401, b'{"error": "wrong token"}')
                    return
                state = codec.loads(AgentState, body)
                outer.states.append(state)
                directive = outer.policy(state)
                if directive.version == state.seen and directive == self.last:
                    time.sleep(0.05)
                self.last = directive
                self.answer(outer.status, codec.dumps(directive))

            def answer(self, status: int, body: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header(HEADER, outer.version)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the launcher has broken it off

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # broken off

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "ScriptedCoordinator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.hang_up()  # or kept connections would be served for ever
        self._thread.join()

    def hang_up(self) -> None:
        """Close all connections, as a coordinator does that has not heard anything for a while."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def last(self) -> AgentState:
        return self.states[-1]


@dataclass
class Launcher:
    """`everstep launch` as a process. Its streams go to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher did not leave:\n{self.output}") from None

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@dataclass
class Bench:
    """A folder with scripts and launchers that are gone when the test is."""

    folder: Path
    launchers: list[Launcher] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def script(self, text: str, name: str = "train.py") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def launch(
        self,
        *words: object,
        endpoint: str | None = None,
        stream: int | None = None,
        program: tuple[str, ...] = ("-P", "-m", "everstep.cli"),
        **variables: str,
    ) -> Launcher:
        """Start `everstep launch` in the folder; its output goes to a file, or to `stream`."""
        log = self.folder / f"launcher{len(self.launchers)}.log"
        flags = ["--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"] if endpoint else []
        command = [sys.executable, *program, "launch", *flags, *map(str, words)]
        settings = environment(**{env.TOKEN: TOKEN, **variables})
        with log.open("wb") as file:
            out = file if stream is None else stream
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.folder, env=settings)
        self.launchers.append(Launcher(process, log))
        return self.launchers[-1]

    def coordinator(
        self, port: int, nodes: int, max_restarts: int = 3, replaces: bool = False
    ) -> subprocess.Popen[bytes]:
        """The real one."""
        wish = {"nodes": nodes, "min_nodes": nodes, "max_restarts": max_restarts, "replaces": replaces}
        intent = json.dumps(wish)
        command = [sys.executable, "-P", "-m", "everstep.cli", "coordinator", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--intent", intent]
        with (self.folder / "coordinator.log").open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(**{env.TOKEN: TOKEN}))
        self.others.append(process)
        return process

    def close(self) -> None:
        for process in [launcher.process for launcher in self.launchers] + self.others:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    made = Bench(folder)
    try:
        yield made
    finally:
        made.close()
