"""What an API server answers to a client that is not ours: kopf keeps its watches to itself, failing ones as well."""

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace

import aiohttp

log = logging.getLogger(__name__)


class Answers:
    """Hears the answers to all requests, watches among them, of the sessions that it traces; of one resource."""

    def __init__(self, plural: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._plural = plural
        self._clock = clock
        self._heard = clock()
        self._failing = {plural: "not yet asked for"}  # path: what was wrong with its last answer

    def trace(self) -> aiohttp.TraceConfig:
        """For an aiohttp.ClientSession."""
        config = aiohttp.TraceConfig()
        config.on_request_end.append(self._ended)
        config.on_request_exception.append(self._broke)
        return config

    def wrong(self) -> str | None:
        """What the last answer for some path was, if it was none or an error."""
        return next((f"{path}: {how}" for path, how in self._failing.items()), None)

    def silent_seconds(self) -> float:
        """Since the last answer. The one to a watch comes when it begins."""
        return self._clock() - self._heard

    def end(self, why: str) -> None:
        """The client has given up, whatever it was answered last. The next answer tells of a new one."""
        self._failing = {self._plural: why}

    async def _ended(self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestEndParams) -> None:
        status = told.response.status
        self._note(told.url.path, f"HTTP {status}" if status >= 400 else None)

    async def _broke(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestExceptionParams
    ) -> None:
        if isinstance(told.exception, Exception):  # not a cancellation: we are asked to end
            self._note(told.url.path, str(told.exception) or type(told.exception).__name__)

    def _note(self, path: str, wrong: str | None) -> None:
        if not path.endswith(f"/{self._plural}"):
            return
        before = [self._failing.pop(known, None) for known in (path, self._plural)]
        if wrong is None:
            self._heard = self._clock()
            return
        self._failing[path] = wrong
        if wrong not in before:
            log.warning("watching %s: %s", path, wrong)
