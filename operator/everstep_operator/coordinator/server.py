"""The coordinator on the network: a thin HTTP shell around the state machine. One lock, and a condition to wait on.

A sync that has nothing new to say waits until there is something, at most SYNC_SECONDS. One more thread lets time pass.
"""

import hmac
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from everstep_operator.coordinator.metrics import render
from everstep_operator.coordinator.run import Run
from everstep_protocol import codec
from everstep_protocol.messages import (
    GRANT,
    HEALTHZ,
    INTENT,
    METRICS,
    PROGRESS,
    SYNC,
    SYNC_SECONDS,
    AgentState,
    Directive,
    Grant,
    GrantRequest,
    Intent,
    Report,
)
from everstep_protocol.version import HEADER, PROTOCOL_VERSION, ProtocolMismatch, check_peer

#: Longest body that is read. An AgentState with a memory of ten failures takes a few kilobytes.
BODY_LIMIT = 1 << 20
#: A connection on which nobody has spoken for this long is closed.
IDLE_SECONDS = 60.0
#: A new coordinator does not know yet which generation runs; so long a grant waits for an agent to tell.
LEARN_SECONDS = 5.0


class Refusal(Exception):
    """A request that gets an error status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Service:
    """The state machine behind a lock. Methods may be called from any thread."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False

    def sync(self, state: AgentState, seconds: float = SYNC_SECONDS) -> Directive:
        """Take the state in at once; answer when there is a directive that the agent has not seen."""
        with self._changed:
            before = self._run.version
            directive = self._run.sync(state, self._clock())
            if self._run.version != before:
                self._changed.notify_all()
            give_up = self._clock() + seconds
            while directive.version == state.seen and not self._closed:
                left = give_up - self._clock()
                if left <= 0 or not self._changed.wait(left):
                    break
                directive = self._run.directive(state.agent)
            return directive

    def answered(self, agent: str, directive: Directive) -> None:
        with self._changed:
            self._run.answered(agent, directive)
            self._changed.notify_all()

    def set_intent(self, intent: Intent) -> Report:
        """Raises Refusal (409): the intent of another run. BadMessage: it contradicts itself."""
        with self._changed:
            ours = self._run.intent.run_uid
            if ours and intent.run_uid and intent.run_uid != ours:
                raise Refusal(409, f"this is the coordinator of run {ours}, not of {intent.run_uid}")
            before = self._run.version
            self._run.set_intent(intent, self._clock())
            if self._run.version != before:
                self._changed.notify_all()
            return self._run.report(self._clock())

    def grant(self, request: GrantRequest) -> Grant:
        with self._changed:
            self._changed.wait_for(lambda: self._run.knows(request.generation) or self._closed, LEARN_SECONDS)
            return self._run.grant(request)

    def report(self) -> Report:
        with self._changed:
            return self._run.report(self._clock())

    def metrics(self) -> str:
        with self._changed:
            return render(self._run.report(self._clock()), self._run.restarts_by_reason)

    def wait_alone(self, seconds: float) -> bool:
        """Until no agent is left that has to be told something, at most `seconds`. True: nobody is left."""
        with self._changed:
            return self._changed.wait_for(self._run.alone, seconds)

    def let_time_pass(self) -> None:
        """Body of the thread that ticks; returns after `close`."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                before = self._run.version
                self._run.tick(now)
                if self._run.version != before:
                    self._changed.notify_all()
                self._changed.wait(max(0.01, self._run.wake_at(now) - now))

    def close(self) -> None:
        """Let everybody go who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Server:
    """Listens from construction on; `start` answers, in threads."""

    def __init__(self, service: Service, host: str, port: int, token: str) -> None:
        """`host` "": on all addresses, of IPv4 and IPv6. Raises OSError: cannot listen there."""
        self.service = service
        self._http = _HTTPServer((host, port), type("Handler", (_Handler,), {"service": service, "token": token}))
        self.host, self.port = self._http.server_name, self._http.server_port

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, args=(0.1,), name="everstep-http", daemon=True).start()
        threading.Thread(target=self.service.let_time_pass, name="everstep-clock", daemon=True).start()

    def close(self) -> None:
        """Stop answering. Only after `start`."""
        self.service.close()
        self._http.shutdown()
        self._http.server_close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # all agents of a large run come at once

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        host, _ = address
        if ":" in host or (not host and socket.has_dualstack_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # a cluster may give pods either
        # The base class asks the resolver for our name, which may take seconds and which nobody needs.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away in the middle is nothing to print."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    service: Service
    token: str
    protocol_version = "HTTP/1.1"
    server_version = "everstep"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one packet

    def do_GET(self) -> None:
        if self.path == HEALTHZ:
            self._send(200, b"ok\n", "text/plain; charset=utf-8")
        elif self.path == METRICS:
            self._send(200, self.service.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._answer({PROGRESS: self._progress})

    def do_POST(self) -> None:
        self._answer({SYNC: self._sync, GRANT: self._grant})

    def do_PUT(self) -> None:
        self._answer({INTENT: self._intent})

    def _progress(self, _: bytes) -> None:
        self._send_message(self.service.report())

    def _sync(self, body: bytes) -> None:
        state = codec.loads(AgentState, body)
        directive = self.service.sync(state)
        self._send_message(directive)
        self.wfile.flush()
        self.service.answered(state.agent, directive)

    def _grant(self, body: bytes) -> None:
        self._send_message(self.service.grant(codec.loads(GrantRequest, body)))

    def _intent(self, body: bytes) -> None:
        self._send_message(self.service.set_intent(codec.loads(Intent, body)))

    def _answer(self, verbs: dict[str, Callable[[bytes], None]]) -> None:
        try:
            length = self._length()
            try:
                self._admit()
            except (Refusal, ProtocolMismatch):
                self._drop(length)
                raise
            body = self.rfile.read(length)
            if self.path not in verbs:
                raise Refusal(404, f"there is no {self.command} {self.path} here")
            verbs[self.path](body)
        except Refusal as refusal:
            self._send_error(refusal.status, str(refusal))
        except ProtocolMismatch as mismatch:
            self._send_error(426, str(mismatch))
        except codec.BadMessage as bad:
            self._send_error(400, str(bad))

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # where the next request begins is anybody's guess
            raise Refusal(400, "a request needs a Content-Length")
        if int(length) > BODY_LIMIT:
            self.close_connection = True
            self._drop(min(int(length), 2 * BODY_LIMIT))
            raise Refusal(400, f"a message of {length} bytes is too long; at most {BODY_LIMIT} are read")
        return int(length)

    def _drop(self, length: int) -> None:
        """Whoever is still sending would not hear the answer; but nothing is kept of strangers."""
        while length > 0 and (part := self.rfile.read(min(length, 1 << 14))):
            length -= len(part)

    def _admit(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise Refusal(401, "wrong or missing token: each run has its own, in EVERSTEP_TOKEN of its pods")
        check_peer(self.headers.get(HEADER), who="the client")

    def _send_message(self, message: Any) -> None:
        self._send(200, codec.dumps(message), "application/json")

    def _send_error(self, status: int, sentence: str) -> None:
        self._send(status, json.dumps({"error": sentence}).encode(), "application/json")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header(HEADER, str(PROTOCOL_VERSION))
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line per heartbeat would drown what matters."""
