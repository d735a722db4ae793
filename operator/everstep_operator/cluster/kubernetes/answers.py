"""What an API server answers to a client that is not ours: kopf keeps its watches to itself, failing ones as well."""

import logging
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import aiohttp

log = logging.getLogger(__name__)

_NOT_YET = "not yet asked for"


class Answers:
    """Hears the answers to all requests, watches among them, of the sessions that it traces; to some paths."""

    def __init__(self, paths: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = dict.fromkeys(paths, clock())
        self._wrong: dict[str, str | None] = dict.fromkeys(self._heard, _NOT_YET)

    def trace(self) -> aiohttp.TraceConfig:
        """For an aiohttp.ClientSession."""
        config = aiohttp.TraceConfig()
        config.on_request_end.append(self._ended)
        config.on_request_exception.append(self._broke)
        return config

    def waiting(self) -> list[str]:
        """Paths that nothing has been heard about yet."""
        return [path for path, how in self._wrong.items() if how is _NOT_YET]

    def wrong(self, path: str) -> str | None:
        """What the last answer was, if it was none or an error."""
        return self._wrong[path]

    def silent_seconds(self) -> float:
        """Since the last answer for the path that has had none for longest. That to a watch comes when it begins."""
        return self._clock() - min(self._heard.values())

    def end(self, why: str) -> None:
        """The client has given up, whatever it was answered last. The next answer tells of a new one."""
        self._wrong = dict.fromkeys(self._wrong, why)

    async def _ended(self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestEndParams) -> None:
        status = told.response.status
        for path in self._paths_of(told.url.path):
            if status < 500:  # a refusal as well is the word of one who lives
                self._heard[path] = self._clock()
            self._note(path, f"HTTP {status}" if status >= 400 else None)

    async def _broke(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestExceptionParams
    ) -> None:
        if isinstance(told.exception, Exception):  # not a cancellation: we are asked to end
            for path in self._paths_of(told.url.path):
                self._note(path, str(told.exception) or type(told.exception).__name__)

    def _paths_of(self, asked: str) -> list[str]:
        """One, or none. API servers behind a proxy have a path of their own before it."""
        return [path for path in self._heard if asked.endswith(path)]

    def _note(self, path: str, wrong: str | None) -> None:
        before, self._wrong[path] = self._wrong[path], wrong
        if wrong is not None and wrong != before:
            log.warning("watching %s: %s", path, wrong)
