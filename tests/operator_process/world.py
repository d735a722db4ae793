"""An adapter on the emulated API, with one run in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from everstep_operator.api.trainingrun import API_VERSION, KIND, TrainingRun
from everstep_operator.cluster.kubernetes import ApiServer, KubernetesCluster, Tokens, configuration
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.plan.model import PodSpec
from everstep_protocol import labels
from tests.emulated import EmulatedCluster, Fault
from tests.emulated.api import Status

TOKENS = Tokens(b"a key of thirty-two secret bytes")
SETTINGS = RenderSettings("operator", "runtime")

FORBIDDEN = Status(403, "Forbidden", 'pods is forbidden: User "x" cannot create resource "pods" in API group ""')
QUOTA = Status(403, "Forbidden", 'pods "first-0-1" is forbidden: exceeded quota: small, requested: pods=1')


class World:
    def __init__(self, folder: Path) -> None:
        self.cluster = EmulatedCluster(folder, kubelet=False)
        self.api = self.cluster.api
        self.kubeconfig = str(self.cluster.kubeconfig())
        self.run = TrainingRun.model_validate(self.cluster.create("trainingruns", manifest("first")))

    def fail(self, method: str, plural: str, answer: Status | None, times: int = 1, after: bool = False) -> None:
        self.api.faults.append(Fault(method, plural, answer, times, after=after))

    @asynccontextmanager
    async def server(self, **settings: Any) -> AsyncIterator[ApiServer]:
        api = ApiServer(await configuration(self.kubeconfig), **settings)
        try:
            yield api
        finally:
            await api.close()

    @asynccontextmanager
    async def connect(self, **settings: Any) -> AsyncIterator[KubernetesCluster]:
        async with self.server() as api, KubernetesCluster(api, TOKENS, SETTINGS, **settings) as cluster:
            await cluster.synced()
            await until(lambda: all(informer.watching for informer in cluster.informers()))
            yield cluster

    def spec(self, node: int = 0, attempt: int = 1) -> PodSpec:
        metadata = self.run.metadata
        return PodSpec(
            name=f"first-{node}-{attempt}",
            role=labels.WORKER,
            node=node,
            attempt=attempt,
            command=("python", "train.py"),
            labels={
                labels.RUN: metadata.name,
                labels.RUN_UID: metadata.uid,
                labels.ROLE: labels.WORKER,
                labels.NODE: str(node),
                labels.ATTEMPT: str(attempt),
            },
        )


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"trainer": {"command": ["python", "train.py"]}, **spec},
    }


async def until(question: Callable[[], Any]) -> Any:
    """The first true answer."""
    async with asyncio.timeout(20):
        while True:
            answer = question()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)
