"""The Kubernetes adapter: the conformance suite, against the emulated API and against a real API server."""

import asyncio
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from everstep_operator.api.trainingrun import API_VERSION, KIND, TrainingRun
from everstep_operator.cluster.kubernetes import ApiServer, KubernetesCluster, Tokens, configuration
from everstep_operator.cluster.kubernetes.api import _tls
from everstep_operator.cluster.port import Cluster
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.cluster.state import free_ports
from everstep_operator.plan.model import Pod
from tests.cluster.conformance import Conformance
from tests.emulated import EmulatedCluster

TOKENS = Tokens(b"a key of thirty-two secret bytes")


def manifest(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "first", "namespace": namespace},
        # An operator that runs in the cluster under test keeps its hands off.
        "spec": {"managedBy": "everstep.dev/conformance", "trainer": {"command": ["python", "train.py"]}},
    }


class KubernetesWorld:
    """One run in one namespace."""

    run: TrainingRun
    seconds: float
    kubeconfig: str
    settings: RenderSettings
    pod_reader: Any

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Cluster]:
        api = ApiServer(await configuration(self.kubeconfig))
        namespaces = (self.run.metadata.namespace,)
        cluster = KubernetesCluster(api, TOKENS, self.settings, namespaces=namespaces, resync_seconds=0.3)
        try:
            async with cluster:
                await cluster.synced()
                yield cluster
        finally:
            await api.close()

    def another_uid(self) -> TrainingRun:
        return self.run.model_copy(update={"metadata": self.run.metadata.model_copy(update={"uid": "another"})})


# The emulated API.


class EmulatedWorld(KubernetesWorld):
    seconds = 30.0

    def __init__(self, folder: Path) -> None:
        self.cluster = EmulatedCluster(folder)
        self.kubeconfig = str(self.cluster.kubeconfig())
        self.settings = RenderSettings("operator", "runtime", coordinator_port=free_ports(1)[0])
        self.run = TrainingRun.model_validate(self.cluster.create("trainingruns", manifest("team")))

    def log(self, pod: Pod) -> str:
        assert self.cluster.kubelet is not None
        path = self.cluster.kubelet.log(pod.uid)
        return path.read_text() if path.exists() else ""


class TestEmulated(Conformance):
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[EmulatedWorld]:
        world = EmulatedWorld(tmp_path)
        yield world
        world.cluster.close()


# A real one.


class RealWorld(KubernetesWorld):
    seconds = 90.0

    def __init__(self, namespace: str) -> None:
        self.kubeconfig = os.environ["KUBECONFIG"]
        image = os.environ["EVERSTEP_OPERATOR_IMAGE"]  # it has a shell, and `everstep coordinator`
        self.settings = RenderSettings(operator_image=image, runtime_image=image)
        self._logs: dict[str, _Log] = {}
        self.namespace = namespace
        self._found = asyncio.run(configuration(self.kubeconfig))
        created = asyncio.run(self._create())
        self.run = TrainingRun.model_validate(created)

    async def _create(self) -> dict[str, Any]:
        api = ApiServer(self._found)
        try:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
            await api.request("POST", "/api/v1/namespaces", body=namespace)
            runs = f"/apis/{API_VERSION}/namespaces/{self.namespace}/trainingruns"
            return await api.request("POST", runs, body=manifest(self.namespace))
        finally:
            await api.close()

    def end(self) -> None:
        async def delete() -> None:
            api = ApiServer(self._found)
            await api.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods", body={"gracePeriodSeconds": 0})
            await api.request("DELETE", f"/api/v1/namespaces/{self.namespace}")
            await api.close()

        asyncio.run(delete())

    def log(self, pod: Pod) -> str:
        """Followed from the first question on, because it goes with its pod."""
        if pod.uid not in self._logs:
            url = f"{self._found.host}/api/v1/namespaces/{self.namespace}/pods/{pod.name}/log?follow=true"
            self._logs[pod.uid] = _Log(url, _tls(self._found))
        return self._logs[pod.uid].read(to_its_end=pod.finished)


class _Log(threading.Thread):
    def __init__(self, url: str, tls: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._tls = url, tls
        self._text = b""
        self.start()

    def read(self, to_its_end: bool) -> str:
        self.join(20 if to_its_end else 0.05)
        return self._text.decode()

    def run(self) -> None:
        for _ in range(300):
            try:
                with urllib.request.urlopen(self._url, context=self._tls, timeout=60) as answer:
                    while chunk := answer.read1(65_536):
                        self._text += chunk
                if self._text:
                    return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 404 and b"pods" in error.read():
                        return  # it is gone
                time.sleep(0.2)  # the container has not started yet


@pytest.mark.cluster
class TestRealApiServer(Conformance):
    @pytest.fixture
    def world(self, trainingruns: None) -> Iterator[RealWorld]:
        world = RealWorld(f"everstep-conformance-{uuid.uuid4().hex[:6]}")
        yield world
        world.end()
