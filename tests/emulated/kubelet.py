"""Runs the main container of each pod as a process of this machine, and tells the API server how it goes."""

import asyncio
import copy
import os
import signal
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from everstep_protocol import env
from tests.emulated.api import EmulatedApi, Object

ADDRESS = "127.0.0.1"
NODE = "emulated"


class Kubelet:
    def __init__(self, api: EmulatedApi, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self._tasks: dict[str, asyncio.Task[None]] = {}  # uid of a pod: the task that runs it

    async def run(self) -> None:
        try:
            while True:
                for pod in self._api.of("pods"):
                    uid = pod["metadata"]["uid"]
                    if uid not in self._tasks:
                        self._tasks[uid] = asyncio.create_task(self._run(uid, pod["metadata"]["name"]))
                await self._api.changed()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def log(self, uid: str) -> Path:
        return self._folder / f"{uid}.log"

    def _pod(self, uid: str) -> Object | None:
        found = next((pod for pod in self._api.of("pods") if pod["metadata"]["uid"] == uid), None)
        return None if found is None else copy.deepcopy(found)

    async def _say(self, uid: str, phase: str, state: Object) -> None:
        if (pod := self._pod(uid)) is not None:
            name = pod["spec"]["containers"][0]["name"]
            pod["spec"]["nodeName"] = NODE
            pod["status"] |= {"phase": phase, "podIP": ADDRESS, "containerStatuses": [{"name": name, "state": state}]}
            await self._api.put("pods", pod)

    async def _run(self, uid: str, name: str) -> None:
        pod = self._pod(uid)
        if pod is None:
            return
        words = self._folder / f"{uid}.termination"
        container = pod["spec"]["containers"][0]
        command = [*container["command"], *container.get("args", [])]
        if command[0] == "everstep":
            command[:1] = [sys.executable, "-P", "-m", "everstep.cli"]
        try:
            with self.log(uid).open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env=dict(self._environment(pod, container, words)),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            message = f'exec: "{command[0]}": executable file not found in $PATH ({error.strerror})'
            await self._say(uid, "Failed", _terminated(128, "StartError", message))
            await self._leave(uid)
            return
        try:
            await self._say(uid, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
            await self._until_it_ends(uid, process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
        code = 128 - code if code < 0 else code
        message = words.read_text() if words.exists() else ""
        await self._say(uid, "Failed" if code else "Succeeded", _terminated(code, "Error", message))
        await self._leave(uid)

    async def _until_it_ends(self, uid: str, process: asyncio.subprocess.Process) -> None:
        """Minds deletions meanwhile."""
        ended = asyncio.create_task(process.wait())
        asked = False
        try:
            while not ended.done():
                pod = self._pod(uid)
                if pod is None:
                    return  # deleted with no grace: it is killed
                pause = None
                if "deletionTimestamp" in pod["metadata"]:
                    if not asked:
                        asked = True
                        process.terminate()
                    gone_by = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"])
                    pause = (gone_by - datetime.now(UTC)).total_seconds()
                    if pause <= 0:
                        return
                await self._api.changed_or(ended, pause)
        finally:
            ended.cancel()

    async def _leave(self, uid: str) -> None:
        """A pod that has ended stays until it is deleted."""
        while (pod := self._pod(uid)) is not None:
            if "deletionTimestamp" in pod["metadata"]:
                await self._api.remove("pods", pod)
            else:
                await self._api.changed()

    def _environment(self, pod: Object, container: Object, words: Path) -> Iterator[tuple[str, str]]:
        yield "PATH", os.environ["PATH"]
        for variable in container["env"]:
            if variable["name"] == env.COORDINATOR:
                yield variable["name"], f"http://{ADDRESS}:{urlsplit(variable['value']).port}"  # nobody knows its name
            elif "value" in variable:
                yield variable["name"], variable["value"]
            elif "secretKeyRef" in variable.get("valueFrom", {}):
                wanted = variable["valueFrom"]["secretKeyRef"]
                yield variable["name"], self._secret(pod["metadata"]["namespace"], wanted)
            else:
                yield variable["name"], ADDRESS
        yield env.TERMINATION_FILE, str(words)

    def _secret(self, namespace: str, wanted: dict[str, Any]) -> str:
        secret = self._api.objects["secrets", namespace, wanted["name"]]
        if "stringData" in secret:
            return str(secret["stringData"][wanted["key"]])
        return b64decode(secret["data"][wanted["key"]]).decode()


def _terminated(code: int, reason: str, message: str) -> Object:
    return {"terminated": {"exitCode": code, "reason": "Completed" if code == 0 else reason, "message": message}}
