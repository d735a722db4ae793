"""Talking to the coordinators of runs: by the address of the pod, which needs no name service and no proxy."""

import asyncio
import hashlib
import hmac
import json
import logging
from pathlib import Path

import aiohttp

from everstep_operator.cluster.port import ClusterError
from everstep_protocol import codec, messages
from everstep_protocol.messages import Intent, Report
from everstep_protocol.version import HEADER, PROTOCOL_VERSION, ProtocolMismatch, check_peer

#: A coordinator answers in milliseconds. One on a dead node does not answer at all.
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 3.0
#: So many are asked at the same time.
AT_ONCE = 32
#: Of a report: half a kilobyte for each node of eight ranks.
_LONGEST = 16 << 20

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
        self._places = asyncio.Semaphore(AT_ONCE)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=AT_ONCE, keepalive_timeout=30),
        )

    async def close(self) -> None:
        await self._session.close()

    async def report(self, address: str, run_uid: str) -> Report | None:
        """None while it does not answer. What answers is of this very moment: nothing is kept."""
        return await self._ask("GET", messages.PROGRESS, address, run_uid, None)

    async def tell(self, address: str, run_uid: str, intent: Intent) -> Report | None:
        return await self._ask("PUT", messages.INTENT, address, run_uid, codec.dumps(intent))

    async def _ask(self, method: str, path: str, address: str, run_uid: str, body: bytes | None) -> Report | None:
        host = f"[{address}]" if ":" in address else address
        headers = {
            "Authorization": f"Bearer {self._tokens.of(run_uid)}",
            HEADER: str(PROTOCOL_VERSION),
            "Content-Type": "application/json",
        }
        url = f"http://{host}:{self._port}{path}"
        try:
            async with self._places, self._session.request(method, url, data=body, headers=headers) as reply:
                text = await _whole(reply)
                if reply.status != 200:
                    log.warning("the coordinator of %s refuses: %s", run_uid, _sentence(text))
                    return None
                check_peer(reply.headers.get(HEADER), who="the coordinator")
                return codec.loads(Report, text)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        except (codec.BadMessage, ProtocolMismatch) as error:
            log.warning("the coordinator of %s is not understood: %s", run_uid, error)
            return None


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
