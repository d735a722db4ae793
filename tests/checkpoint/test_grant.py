"""A generation that is over cannot publish."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.grant import Coordinator
from everstep.errors import StorageError
from everstep_protocol.version import HEADER, PROTOCOL_VERSION
from tests.checkpoint.conftest import Place, state

Make = Callable[..., Checkpointer]


class Server:
    """A coordinator that knows one thing: the generation that runs."""

    def __init__(self) -> None:
        self.generation = 1
        self.status = 200  # of the next answers
        self.asked: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/grant"
                assert self.headers[HEADER] == str(PROTOCOL_VERSION)
                outer.asked.append(question)
                granted = question["generation"] == outer.generation
                answer: dict[str, Any] = {"granted": granted, "reason": "" if granted else "generation 2 runs now"}
                status = outer.status
                if self.headers["Authorization"] != "Bearer secret":
                    status = 401
                if status != 200:
                    answer = {"error": "no such token"}
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.thread.join()
    server.http.server_close()


def test_granted(folder: Place, make: Make, server: Server) -> None:
    checkpointer = make(folder, coordinator=Coordinator(server.url, "secret"))
    checkpointer.open()
    checkpointer.save(0, 5, state(5), None, wait=True)
    assert server.asked == [{"generation": 1, "step": 5}]
    assert folder.listing("markers/") == ["markers/000001-000-0000000005.json"]


def test_the_coordinator_is_asked_about_the_round_not_about_the_keys(folder: Place, make: Make, server: Server) -> None:
    first = make(folder)
    first.open()
    first.save(0, 5, state(5), None, wait=True)
    second = make(folder, coordinator=Coordinator(server.url, "secret"))  # a new coordinator counts from 1 again
    second.open()
    assert second.save(0, 6, state(6), None, wait=True) == "000002-000-0000000006"
    assert server.asked == [{"generation": 1, "step": 6}]


def test_a_stale_generation_cannot_publish(folder: Place, make: Make, server: Server) -> None:
    stale = make(folder, coordinator=Coordinator(server.url, "secret"))
    stale.open()
    server.generation = 2
    with pytest.raises(StorageError, match="the coordinator refused to have it published: generation 2 runs now"):
        stale.save(0, 5, state(5), None, wait=True)
    assert folder.listing("markers/") == []
    assert stale.last_checkpoint is None
    assert stale.not_durable_since is not None


def test_wrong_token_is_final(folder: Place, make: Make, server: Server) -> None:
    checkpointer = make(folder, coordinator=Coordinator(server.url, "guess"))
    checkpointer.open()
    with pytest.raises(StorageError, match="no such token"):
        checkpointer.save(0, 5, state(5), None, wait=True)
    assert folder.listing("markers/") == []


def test_a_coordinator_that_is_away_is_asked_again(folder: Place, make: Make, server: Server) -> None:
    checkpointer = make(folder, coordinator=Coordinator(server.url, "secret"), retry_seconds=20)
    checkpointer.open()
    server.status = 503
    checkpointer.save(0, 5, state(5), None)
    while len(server.asked) < 2:
        pass
    server.status = 200
    checkpointer.wait()
    assert len(folder.listing("markers/")) == 1
