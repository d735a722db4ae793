"""The launcher's side of the conversation with the coordinator: one long poll at a time, in a thread of its own."""

import contextlib
import http.client
import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from everstep_protocol import codec
from everstep_protocol.messages import SYNC, SYNC_SECONDS, AgentState, Directive
from everstep_protocol.version import HEADER, PROTOCOL_VERSION, ProtocolMismatch, check_peer

#: An answer is due after SYNC_SECONDS; a coordinator that is so much later does not answer.
TIMEOUT_SECONDS = SYNC_SECONDS + 5.0


class LinkError(Exception):
    """A sync failed; the message is a sentence."""


class Unreachable(LinkError):
    """Nobody answers, or not in time. Trying again may help."""


class Refused(LinkError):
    """The coordinator understood and said no (token, protocol version, bad message): again would not help."""


class Client:
    """One connection, kept alive. `sync` belongs to one thread; `abort` may come from any other."""

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """Raises ValueError: not an http URL with host and port."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ValueError(f"the coordinator's address must look like http://host:port, not {url!r}")
        self.url = url
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            HEADER: str(PROTOCOL_VERSION),
        }
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def sync(self, state: AgentState, current: Callable[[], bool] = lambda: True) -> Directive:
        """Say it and wait for the answer. `current`: is there nothing newer to say, so that repeating it makes sense?

        Raises:
            Unreachable, Refused.
        """
        kept = self._connection.sock is not None
        try:
            return self._post(codec.dumps(state))
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            # A kept connection may have been closed by the other side while nobody spoke: that is not its death.
            stale = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError)
            if kept and stale and current():
                try:
                    return self._post(codec.dumps(state))
                except (http.client.HTTPException, OSError) as again:
                    error = again
                    self._connection.close()
            raise Unreachable(f"coordinator {self.url} does not answer: {error or type(error).__name__}") from None

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        """Make a waiting `sync` raise Unreachable now."""
        waiting = self._connection.sock
        if waiting is not None:
            with contextlib.suppress(OSError):  # not connected yet, or not any more
                waiting.shutdown(socket.SHUT_RDWR)

    def _post(self, body: bytes) -> Directive:
        self._connection.request("POST", SYNC, body, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 500:
            raise http.client.HTTPException(f"status {answer.status}")
        try:
            check_peer(answer.headers.get(HEADER), who=f"the coordinator at {self.url}")
            if answer.status != 200:
                raise Refused(f"coordinator {self.url} refuses: {_sentence(text)} (status {answer.status})")
            return codec.loads(Directive, text)
        except (ProtocolMismatch, codec.BadMessage) as error:
            raise Refused(str(error)) from None


def _sentence(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace") or "no reason given"


class Link:
    """Sends what it is offered and queues what comes back: a Directive or a LinkError for each offer.

    An urgent offer does not wait for the poll in flight: that one is broken off. Nothing is lost by it, because each
    message carries everything (`seen` tells the coordinator what to repeat).
    """

    def __init__(self, client: Client, wake: Callable[[], None]) -> None:
        self._client = client
        self._wake = wake
        self._condition = threading.Condition()
        self._next: AgentState | None = None
        self._in_flight = False
        self._answers: deque[Directive | LinkError] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._talk, name="everstep-link", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Nothing is under way: the next offer is due."""
        with self._condition:
            return self._next is None and not self._in_flight and not self._answers

    def offer(self, state: AgentState) -> None:
        with self._condition:
            if self._closed:
                return
            self._next = state
            self._condition.notify()
            if self._in_flight:
                self._client.abort()

    def take(self) -> Directive | LinkError | None:
        with self._condition:
            return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
            self._client.abort()
        self._thread.join(1.0)  # a connection attempt under way cannot be broken off; it is not waited for
        if not self._thread.is_alive():
            self._client.close()

    def _talk(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._next is not None or self._closed)
                if self._closed:
                    return
                state, self._next = self._next, None
                assert state is not None
                self._in_flight = True
            answer: Directive | LinkError
            try:
                answer = self._client.sync(state, lambda: self._next is None)
            except LinkError as error:
                answer = error
            with self._condition:
                self._in_flight = False
                if self._next is not None and isinstance(answer, Unreachable):
                    continue  # broken off by us
                self._answers.append(answer)
            self._wake()
