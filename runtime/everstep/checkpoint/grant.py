"""The coordinator's word before a checkpoint becomes one: a generation that is over must not publish."""

import json
import urllib.error
import urllib.request

from everstep.errors import StorageError
from everstep_protocol import codec
from everstep_protocol.messages import GRANT, Grant, GrantRequest
from everstep_protocol.version import HEADER, PROTOCOL_VERSION


class Refused(Exception):
    """The coordinator says no, and asking again would not help."""


class Coordinator:
    """The coordinator, as far as checkpoints need it."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        # No proxy: the coordinator is in the run's own network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, generation: int, step: int) -> None:
        """Return if this generation may publish a checkpoint of that step.

        Raises:
            Refused: it may not.
            StorageError: no answer; it may be on its way back, so try again.
        """
        request = urllib.request.Request(
            self._url + GRANT,
            data=codec.dumps(GrantRequest(generation, step)),
            method="POST",
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                HEADER: str(PROTOCOL_VERSION),
            },
        )
        try:
            with self._opener.open(request, timeout=5) as response:
                grant = codec.loads(Grant, response.read())
        except urllib.error.HTTPError as error:
            with error:
                if 400 <= error.code < 500:
                    raise Refused(_sentence(error)) from None
                raise StorageError(f"the coordinator at {self._url} answers {error.code}") from None
        except (OSError, ValueError) as error:
            raise StorageError(f"no answer from the coordinator at {self._url}: {error}") from None
        if not grant.granted:
            raise Refused(grant.reason or "no reason given")


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"status {error.code}"
