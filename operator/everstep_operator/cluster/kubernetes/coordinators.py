"""Talking to the coordinators of runs: by the address of the pod, which needs no name service and no proxy."""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Set
from pathlib import Path

import aiohttp

from everstep_operator.cluster.port import ClusterError
from everstep_operator.plan.model import Silence
from everstep_protocol import codec, messages
from everstep_protocol.messages import Intent, Report
from everstep_protocol.version import HEADER, PROTOCOL_VERSION, ProtocolMismatch, check_peer

#: A coordinator answers in milliseconds. One on a dead node does not answer at all.
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 3.0
#: So many are asked at the same time.
AT_ONCE = 32
#: Of a report: half a kilobyte for each node of eight ranks.
_LONGEST = 16 << 20

_KEPT_APART = "; a network policy that keeps the operator from it would do that"
_KEY_CHANGED = (
    "; the key for the tokens of runs is not the one with which this run began (another installation, another "
    "tokenKey.existingSecret): bring it back, or delete the run and apply it again: it resumes from its checkpoints"
)

log = logging.getLogger(__name__)


class Tokens:
    """The token of a run is a function of the operator's key and the run's uid, so nobody has to remember it."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Raises ClusterError: no key there."""
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise ClusterError(
                f"no key for the tokens of runs: {path}: {error.strerror}; see --token-key-file"
            ) from None
        if len(key) < 16:
            raise ClusterError(f"the key for the tokens of runs in {path} has {len(key)} bytes; it needs 16 at least")
        return cls(key)

    def of(self, run_uid: str) -> str:
        return hmac.new(self._key, run_uid.encode(), hashlib.sha256).hexdigest()


class Coordinators:
    """To be closed."""

    def __init__(self, tokens: Tokens, port: int) -> None:
        self._tokens = tokens
        self._port = port
        self._logged: dict[str, str] = {}  # run uid: why it is not heard
        self._places = asyncio.Semaphore(AT_ONCE)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=30),
        )

    async def close(self) -> None:
        await self._session.close()

    def forget(self, run_uid: str) -> None:
        """It is over."""
        self._logged.pop(run_uid, None)

    def forget_all_but(self, run_uids: Set[str]) -> None:
        self._logged = {uid: why for uid, why in self._logged.items() if uid in run_uids}

    async def report(self, address: str, run_uid: str) -> Report | Silence:
        """What it answers is of this very moment: nothing is kept."""
        answer = await self._ask("GET", messages.PROGRESS, address, run_uid, None)
        why = answer.why if isinstance(answer, Silence) else ""
        if why and self._logged.get(run_uid) != why:
            log.warning("the coordinator of run %s gives no report: %s", run_uid, why)
            self._logged[run_uid] = why
        elif not why:
            self.forget(run_uid)
        return answer

    async def tell(self, address: str, run_uid: str, intent: Intent) -> Report | None:
        answer = await self._ask("PUT", messages.INTENT, address, run_uid, codec.dumps(intent))
        if isinstance(answer, Silence):
            log.warning("the coordinator of run %s was not told what is wanted: %s", run_uid, answer.why)
            return None
        return answer

    async def _ask(self, method: str, path: str, address: str, run_uid: str, body: bytes | None) -> Report | Silence:
        host = f"[{address}]" if ":" in address else address
        headers = {
            "Authorization": f"Bearer {self._tokens.of(run_uid)}",
            HEADER: str(PROTOCOL_VERSION),
            "Content-Type": "application/json",
        }
        place = f"{host}:{self._port}"
        try:
            async with (
                self._places,
                self._session.request(method, f"http://{place}{path}", data=body, headers=headers) as reply,
            ):
                text = await _whole(reply)
                if reply.status != 200:
                    hint = _KEY_CHANGED if reply.status == 401 else ""
                    return Silence(f"{place} refuses: {reply.status}: {_sentence(text)}{hint}", refuses=True)
                check_peer(reply.headers.get(HEADER), who="the coordinator")
                return codec.loads(Report, text)
        except TimeoutError:
            return Silence(f"{place} does not answer in time{_KEPT_APART}")
        except (aiohttp.ClientError, OSError) as error:
            return Silence(f"{place} does not answer: {error or type(error).__name__}")
        except (codec.BadMessage, ProtocolMismatch) as error:
            return Silence(f"{place} is not understood: {error}", refuses=True)


async def _whole(reply: aiohttp.ClientResponse) -> bytes:
    """The body, which a network delivers in as many pieces as it likes. Raises BadMessage: it is too long."""
    body = bytearray()
    async for piece in reply.content.iter_any():
        body += piece
        if len(body) > _LONGEST:
            raise codec.BadMessage(f"it says more than {_LONGEST} bytes")
    return bytes(body)


def _sentence(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace")[:200]
