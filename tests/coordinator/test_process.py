"""`everstep coordinator` as a process: its command line, its end, and what survives its death."""

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everstep_protocol import codec, env
from everstep_protocol.messages import PROGRESS, SYNC, Action, AgentState, Directive, Intent, Report, RunState
from everstep_protocol.reasons import Failure, Reason
from everstep_protocol.version import HEADER, PROTOCOL_VERSION
from tests.coordinator.test_server import TOKEN, agent, running
from tests.coordinator.world import intent

EVERSTEP = [sys.executable, "-m", "everstep.cli", "coordinator"]


class Coordinator:
    """The process, on a port that it chose."""

    def __init__(self, wish: Intent, grace: float = 30.0) -> None:
        self.process = subprocess.Popen(
            [*EVERSTEP, "--host", "127.0.0.1", "--port", "0", "--intent", codec.dumps(wish).decode()],
            env={**os.environ, env.TOKEN: TOKEN, env.GRACE_SECONDS: str(grace)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "listening on 127.0.0.1:" in line, line
        self.port = int(line.rsplit(":", 1)[1])

    def sync(self, state: AgentState) -> Directive:
        return codec.loads(Directive, self._ask("POST", SYNC, codec.dumps(state)))

    def report(self) -> Report:
        return codec.loads(Report, self._ask("GET", PROGRESS, None))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", HEADER: str(PROTOCOL_VERSION)})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == 200, text
        return text


@pytest.fixture
def start() -> Iterator[type[Coordinator]]:
    begun: list[Coordinator] = []

    class Tracked(Coordinator):
        def __init__(self, wish: Intent, grace: float = 30.0) -> None:
            super().__init__(wish, grace)
            begun.append(self)

    yield Tracked
    for coordinator in begun:
        coordinator.close()


def test_a_successor_takes_over_after_sigkill(start: type[Coordinator]) -> None:
    first = start(intent(1))
    directive = first.sync(agent(0))
    assert directive.action is Action.RUN
    failed = replace(running(0, directive, 7), failure=Failure(Reason.KILLED, "killed by SIGKILL", signal=9, step=7))
    directive = first.sync(failed)
    while directive.action is not Action.RUN:
        directive = first.sync(agent(0, generation=1, seen=directive.version))
    directive = first.sync(running(0, replace(directive, version=0), 9))
    assert directive.round is not None
    assert directive.round.generation == 2
    before = first.report()
    first.end(signal.SIGKILL)

    second = start(intent(1))
    state = running(0, directive, 10)
    asked = second.sync(state)
    assert (asked.action, asked.round, asked.want_memory) == (Action.RUN, None, True)
    told = second.sync(replace(state, seen=asked.version, memory=directive.memory))
    assert told.round == directive.round
    assert told.version > directive.version
    report = second.report()
    assert (report.state, report.generation, report.restarts) == (RunState.RUNNING, 2, 1)
    assert [failure.reason for failure in report.failures] == [Reason.KILLED]
    assert report.goodput.wall >= before.goodput.wall
    assert report.goodput.lost.keys() == {Reason.KILLED}


def test_sigterm_with_nobody_there_ends_at_once(start: type[Coordinator]) -> None:
    assert start(intent(1)).end(signal.SIGTERM) == 0


def test_sigterm_serves_on_until_the_agents_have_left(start: type[Coordinator]) -> None:
    coordinator = start(intent(1), grace=60.0)
    directive = coordinator.sync(agent(0))
    coordinator.process.send_signal(signal.SIGTERM)
    coordinator.sync(running(0, directive, 4))
    assert coordinator.process.poll() is None
    gone = replace(running(0, directive, 4), workers="succeeded")  # type: ignore[arg-type]
    told = coordinator.sync(replace(gone, seen=0))
    assert (told.action, told.exit_code) == (Action.EXIT, 0)
    assert coordinator.process.wait(30) == 0


def test_sigterm_does_not_wait_for_ever(start: type[Coordinator]) -> None:
    coordinator = start(intent(1), grace=0.2)
    coordinator.sync(agent(0))
    assert coordinator.end(signal.SIGTERM) == 0


def test_the_result_can_be_read_after_the_end(start: type[Coordinator]) -> None:
    coordinator = start(intent(1))
    directive = coordinator.sync(agent(0))
    coordinator.sync(replace(running(0, directive, 4), workers="succeeded"))  # type: ignore[arg-type]
    assert coordinator.report().state is RunState.SUCCEEDED
    assert coordinator.process.poll() is None


@pytest.mark.parametrize(
    ("token", "grace", "arguments", "sentence"),
    [
        ("", "30", ["--intent", "{}"], "EVERSTEP_TOKEN is not set"),
        ("t", "30", ["--intent", "{"], "--intent: Intent: not JSON"),
        ("t", "30", ["--intent", "{}"], "--intent: Intent: field 'nodes' is missing"),
        ("t", "soon", ["--intent", "{}"], "EVERSTEP_GRACE_SECONDS is 'soon'"),
    ],
)
def test_wrong_usage_is_a_sentence(token: str, grace: str, arguments: list[str], sentence: str) -> None:
    environment = {**os.environ, env.TOKEN: token, env.GRACE_SECONDS: grace}
    done = subprocess.run([*EVERSTEP, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_a_sentence(start: type[Coordinator]) -> None:
    port = str(start(intent(1)).port)
    command = [*EVERSTEP, "--host", "127.0.0.1", "--port", port, "--intent", codec.dumps(intent(1)).decode()]
    environment = {**os.environ, env.TOKEN: TOKEN}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_small_in_memory(start: type[Coordinator]) -> None:
    """It stands beside each run, so it has to be small: at most 60 MB resident, with agents talking."""
    coordinator = start(intent(1))
    directive = coordinator.sync(agent(0))
    for step in range(50):
        coordinator.sync(running(0, replace(directive, version=0), step))
    status = Path(f"/proc/{coordinator.process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert resident <= 60_000
