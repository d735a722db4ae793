"""The coordinator over real HTTP."""

import http.client
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.coordinator.run import Run
from everstep_operator.coordinator.server import BODY_LIMIT, Server, Service
from everstep_protocol import codec
from everstep_protocol.messages import (
    GRANT,
    HEALTHZ,
    INTENT,
    METRICS,
    PROGRESS,
    SYNC,
    Action,
    AgentState,
    Directive,
    Grant,
    GrantRequest,
    Intent,
    RankState,
    Report,
    RunState,
    Stage,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason
from everstep_protocol.version import HEADER, PROTOCOL_VERSION
from tests.coordinator.test_metrics import parse
from tests.coordinator.world import intent

TOKEN = "a-token"


def agent(node: int, **changes: Any) -> AgentState:
    return replace(AgentState(f"agent-{node}", node, "127.0.0.1", 20_000 + node, 1), **changes)


def running(node: int, directive: Directive, step: int, **changes: Any) -> AgentState:
    """The agent with workers of the directive's round, at `step`."""
    assert directive.round is not None
    return agent(
        node,
        generation=directive.round.generation,
        workers=Workers.RUNNING,
        ranks=(RankState(node, 1, step, Stage.TRAINING),),
        seen=directive.version,
        **changes,
    )


class Client:
    """One kept connection."""

    def __init__(self, server: Server, token: str = TOKEN, version: str | None = str(PROTOCOL_VERSION)) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.headers = {"Authorization": f"Bearer {token}"}
        if version is not None:
            self.headers[HEADER] = version

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.connection.request(method, path, body, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.headers[HEADER] == str(PROTOCOL_VERSION)
        return answer.status, text

    def error(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        status, text = self.ask(method, path, body)
        return status, str(json.loads(text)["error"])

    def sync(self, state: AgentState) -> Directive:
        status, text = self.ask("POST", SYNC, codec.dumps(state))
        assert status == 200, text
        return codec.loads(Directive, text)

    def report(self) -> Report:
        return codec.loads(Report, self.ask("GET", PROGRESS)[1])


@pytest.fixture
def server() -> Iterator[Server]:
    now = time.monotonic()
    service = Service(Run(intent(2), now, epoch=time.time() - now, settle_seconds=0.05))
    server = Server(service, "127.0.0.1", 0, TOKEN)
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.connection.close()


def test_health_and_metrics_need_no_token(server: Server) -> None:
    anybody = Client(server, token="", version=None)
    assert anybody.ask("GET", HEALTHZ) == (200, b"ok\n")
    status, text = anybody.ask("GET", METRICS)
    assert status == 200
    assert parse(text.decode())["everstep_run_generation"] == 0
    anybody.connection.close()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", SYNC), ("POST", GRANT), ("PUT", INTENT), ("GET", PROGRESS), ("GET", "/other")]
)
@pytest.mark.parametrize("token", ["", "a-tokem", "a-token2", "ä"])
def test_wrong_token_is_refused(server: Server, method: str, path: str, token: str) -> None:
    stranger = Client(server, token=token.encode("utf-8").decode("latin-1"))
    status, sentence = stranger.error(method, path, b"{}")
    assert status == 401
    assert "token" in sentence
    stranger.connection.close()


def test_nothing_is_kept_of_what_strangers_send(server: Server) -> None:
    stranger, body = Client(server, token="a guess"), b" " * BODY_LIMIT
    tracemalloc.start()
    try:
        for _ in range(2):  # on one connection: the next request begins where the body ended
            assert stranger.error("POST", SYNC, body)[0] == 401
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < BODY_LIMIT / 2
    stranger.connection.close()


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (str(PROTOCOL_VERSION - 1), 200),
        (str(PROTOCOL_VERSION), 200),
        (str(PROTOCOL_VERSION + 1), 200),
        (str(PROTOCOL_VERSION + 2), 426),
        (str(PROTOCOL_VERSION - 2), 426),
        (None, 426),
    ],
)
def test_protocol_version(server: Server, version: str | None, status: int) -> None:
    peer = Client(server, version=version)
    got, text = peer.ask("GET", PROGRESS)
    assert got == status
    if status == 426 and version is not None:
        assert f"version {version}, this side speaks {PROTOCOL_VERSION}" in json.loads(text)["error"]
    peer.connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "part"),
    [
        ("POST", SYNC, b"{", 400, "not JSON"),
        ("POST", SYNC, b"{}", 400, "AgentState: field 'agent' is missing"),
        ("POST", GRANT, b'{"generation": "1", "step": 2}', 400, "GrantRequest.generation: expected int, got str"),
        ("PUT", INTENT, b'{"nodes": 2, "min_nodes": 3, "max_restarts": 1}', 400, "between 1 and nodes (2)"),
        ("PUT", INTENT, codec.dumps(intent(2, run_uid="other")), 409, "the coordinator of run uid, not of other"),
        ("POST", "/v1/other", b"", 404, "there is no POST /v1/other"),
        ("POST", SYNC, b" " * (BODY_LIMIT + 1), 400, "too long"),
    ],
)
def test_bad_requests_get_a_sentence(
    client: Client, method: str, path: str, body: bytes, status: int, part: str
) -> None:
    got, sentence = client.error(method, path, body)
    assert got == status
    assert part in sentence


def test_one_connection_serves_many_requests(client: Client) -> None:
    client.report()
    kept = client.connection.sock
    client.error("POST", SYNC, b"{}")
    client.report()
    assert client.connection.sock is kept


def join(client: Client, server: Server) -> tuple[Client, Directive, Directive]:
    """Both nodes are there and have their round."""
    first = client.sync(agent(0))
    assert first.action is Action.WAIT
    other = Client(server)
    theirs = other.sync(agent(1))
    ours = client.sync(agent(0, seen=first.version))
    assert ours.action is theirs.action is Action.RUN
    return other, ours, theirs


def test_a_waiting_sync_wakes_when_there_is_something_new(client: Client, server: Server) -> None:
    first = client.sync(agent(0))
    got: list[Directive] = []
    waiting = threading.Thread(target=lambda: got.append(client.sync(agent(0, seen=first.version))))
    waiting.start()
    deadline = time.monotonic() + 20
    while not got and time.monotonic() < deadline:
        # Whichever long poll is on when the other node comes has to be answered with the round.
        other = Client(server)
        other.sync(agent(1))
        waiting.join(5)
        other.connection.close()
    assert got[0].action is Action.RUN
    assert got[0].version > first.version


def test_a_failure_reaches_the_others_and_ends_in_a_new_round(client: Client, server: Server) -> None:
    other, ours, theirs = join(client, server)
    ours = client.sync(running(0, replace(ours, version=0), 3))
    failure = Failure(Reason.KILLED, "killed by SIGKILL", node=1, rank=1, signal=9, step=3)
    told = other.sync(replace(running(1, theirs, 3), workers=Workers.FAILED, failure=failure))
    assert told.action is Action.WAIT
    told = client.sync(running(0, ours, 3))
    assert told.action is Action.WAIT
    seen = {0: 0, 1: 0}
    rounds: dict[int, Directive] = {}
    deadline = time.monotonic() + 20
    while len(rounds) < 2 and time.monotonic() < deadline:
        for node, talker in ((0, client), (1, other)):
            answer = talker.sync(agent(node, generation=1, seen=seen[node]))
            seen[node] = answer.version
            if answer.action is Action.RUN:
                rounds[node] = answer
    assert {answer.round.generation for answer in rounds.values() if answer.round} == {2}
    report = client.report()
    assert (report.restarts, report.failures[0].reason) == (1, Reason.KILLED)
    assert parse(client.ask("GET", METRICS)[1].decode())['everstep_run_restarts_total{reason="Killed"}'] == 1
    other.connection.close()


def test_grants(client: Client, server: Server) -> None:
    other, _, _ = join(client, server)
    for generation, granted in [(1, True), (2, False)]:
        status, text = client.ask("POST", GRANT, codec.dumps(GrantRequest(generation, 5)))
        answer = codec.loads(Grant, text)
        assert (status, answer.granted, bool(answer.reason)) == (200, granted, not granted)
    other.connection.close()


def test_the_operator_stops_the_run(client: Client, server: Server) -> None:
    other, ours, theirs = join(client, server)
    client.sync(running(0, replace(ours, version=0), 3))
    other.sync(running(1, replace(theirs, version=0), 3))
    wish = intent(2, stop=StopCause.SUSPEND)
    status, text = client.ask("PUT", INTENT, codec.dumps(wish))
    report = codec.loads(Report, text)
    assert (status, report.state, report.intent) == (200, RunState.STOPPING, wish)
    told = client.sync(running(0, ours, 3))
    assert told.limit is not None
    assert (told.limit.step, told.limit.committed, told.limit.cause) == (4, False, StopCause.SUSPEND)
    other.connection.close()


def test_time_passes_without_anybody_talking(client: Client, server: Server) -> None:
    """The settling after a failure ends by itself: nobody speaks between the report and the decision."""
    other, ours, theirs = join(client, server)
    client.sync(running(0, replace(ours, version=0), 3))
    other.sync(replace(running(1, theirs, 3), workers=Workers.FAILED, failure=Failure(Reason.KILLED, "x")))
    deadline = time.monotonic() + 20
    while not (report := client.report()).failures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert report.failures
    other.connection.close()


def test_stopping_waits_for_agents_that_have_to_be_told(client: Client, server: Server) -> None:
    assert server.service.wait_alone(0)
    other, _, _ = join(client, server)
    assert not server.service.wait_alone(0)
    stopped = other.sync(agent(1, stop=StopCause.INTERRUPT))
    assert (stopped.action, stopped.exit_code) == (Action.EXIT, EXIT_STOPPED)
    client.sync(agent(0))
    assert server.service.wait_alone(5)
    other.connection.close()


def test_intent_in_force_is_reported(client: Client) -> None:
    assert client.report().intent == intent(2)
    assert isinstance(client.report().intent, Intent)
