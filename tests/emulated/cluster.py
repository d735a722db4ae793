"""API server and kubelet in a thread of their own, so that any event loop, and any process, may talk to them."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import yaml
from aiohttp.test_utils import RawTestServer

from tests.emulated.api import EmulatedApi, Object
from tests.emulated.kubelet import Kubelet

T = TypeVar("T")


class EmulatedCluster:
    def __init__(self, folder: Path, *, kubelet: bool = True) -> None:
        self.folder = folder
        self.api = EmulatedApi()
        self.kubelet = Kubelet(self.api, folder) if kubelet else None
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Run it where the API server runs."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    def create(self, plural: str, item: Object) -> Object:
        from tests.emulated.api import _born

        return self.do(self.api.put(plural, _born(item), "ADDED"))

    def kubeconfig(self) -> Path:
        path = self.folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": self.url}}],
            "users": [{"name": "it", "user": {}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = RawTestServer(self.api)
        async with self.api:
            await server.start_server()
            self.url = str(server.make_url("")).rstrip("/")
            kubelet = asyncio.create_task(self.kubelet.run()) if self.kubelet else None
            self._up.set()
            await self._end.wait()
            if kubelet is not None:
                kubelet.cancel()
                await asyncio.gather(kubelet, return_exceptions=True)
            await self.api.forget_history()
            await server.close()
