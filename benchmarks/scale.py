"""What many TrainingRuns cost: one operator, simulated nodes and pods, a real API server.

Needs a Kubernetes with simulated nodes (kwok: label type=kwok, taint kwok.x-k8s.io/node), and to be root on the machine
of its API server: the pods' addresses, which exist nowhere, are led to a stub that answers for all coordinators.

    python benchmarks/scale.py --sizes 50,100,200 --workers 4 --rest 60

For each size it prints: seconds until all pods run; the operator's CPU (of one core) and resident memory at rest; the
99th percentile from hearing of a change to having acted, while a worker is killed in every tenth run, five of them a
second; seconds until a new operator has a full view, and the pods that it touched (none may); API requests per run and
hour, without watches.
The API server's own CPU is apart.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from everstep_operator.cluster.kubernetes import ApiServer, configuration
from everstep_operator.cluster.kubernetes.informer import list_all
from everstep_operator.cluster.state import free_ports
from everstep_operator.settings import COORDINATOR_PORT
from everstep_protocol import codec
from everstep_protocol.messages import Goodput, Intent, Progress, Report, RunState
from everstep_protocol.version import HEADER, PROTOCOL_VERSION

NAMESPACE = "everstep-scale"
RUNS = f"/apis/everstep.dev/v1alpha1/namespaces/{NAMESPACE}/trainingruns"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POLICIES = "/apis/admissionregistration.k8s.io/v1"
KILLS_PER_SECOND = 5.0
PORT, STUB_PORT = free_ports(2)
KEY = b"not a secret, but long enough"


# --- the stub of all coordinators -----------------------------------------------------------------------------------


def stub(port: int) -> None:
    """Answers for every coordinator; whose run is asked for, the token says."""
    intents: dict[str, Intent] = {}
    began = time.time()

    async def answer(request: web.Request) -> web.Response:
        token = request.headers["Authorization"]
        if request.method == "PUT":
            intents[token] = codec.loads(Intent, await request.read())
        step = int(time.time() - began)
        report = Report(
            PROTOCOL_VERSION,
            RunState.RUNNING,
            generation=1,
            world_size=4,
            restarts=0,
            progress=Progress(step=step, max_steps=100_000, loss=1.0, stage="fit"),
            goodput=Goodput(wall=step + 1.0, productive=float(step)),
            intent=intents.get(token),
        )
        return web.Response(body=codec.dumps(report), headers={HEADER: str(PROTOCOL_VERSION)})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, port=port, access_log=None, print=None)


# --- the cluster ----------------------------------------------------------------------------------------------------


def policy() -> dict[str, Any]:
    """All pods of the namespace, coordinators included, go to the simulated nodes."""
    toleration = 'Object.spec.tolerations{key: "kwok.x-k8s.io/node", operator: "Exists", effect: "NoSchedule"}'
    expression = (
        '[JSONPatch{op: "add", path: "/spec/nodeSelector", value: {"type": "kwok"}}, '
        f'JSONPatch{{op: "add", path: "/spec/tolerations", value: [{toleration}]}}]'
    )
    selector = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    return {
        "metadata": {"name": NAMESPACE},
        "spec": {
            "matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        },
    }


def manifest(number: int, workers: int) -> dict[str, Any]:
    return {
        "apiVersion": "everstep.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": f"run-{number:05}", "namespace": NAMESPACE},
        "spec": {"numNodes": workers, "trainer": {"image": "none", "command": ["python", "train.py"]}},
    }


async def prepare(api: ApiServer) -> None:
    if not (await api.request("GET", "/api/v1/nodes?labelSelector=type%3Dkwok"))["items"]:
        raise SystemExit("there are no simulated nodes: start kwok, with nodes labelled type=kwok")
    await delete(api)
    await api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": NAMESPACE}})
    await api.request("POST", f"{POLICIES}/mutatingadmissionpolicies", body=policy())
    binding = {"metadata": {"name": NAMESPACE}, "spec": {"policyName": NAMESPACE}}
    await api.request("POST", f"{POLICIES}/mutatingadmissionpolicybindings", body=binding)
    await asyncio.sleep(3)  # policies act a moment after they are there


async def delete(api: ApiServer) -> None:
    from everstep_operator.cluster.port import NotFound

    for path in (
        f"{POLICIES}/mutatingadmissionpolicybindings/{NAMESPACE}",
        f"{POLICIES}/mutatingadmissionpolicies/{NAMESPACE}",
        f"/api/v1/namespaces/{NAMESPACE}",
    ):
        with contextlib.suppress(NotFound):
            await api.request("DELETE", path)
    with contextlib.suppress(NotFound):
        while True:
            await api.request("GET", f"/api/v1/namespaces/{NAMESPACE}")
            await asyncio.sleep(1)


async def running(api: ApiServer) -> dict[str, str]:
    """Uids of the pods that run, by name."""

    def parse(item: dict[str, Any]) -> tuple[str, str, str, str]:
        status, metadata = item["status"], item["metadata"]
        return metadata["name"], metadata["uid"], status["phase"], status.get("podIP", "")

    pods, _ = await list_all(api, PODS, {}, parse)
    for net in {address.rpartition(".")[0] for *_, address in pods if address}:
        lead_here(net)
    return {name: uid for name, uid, phase, _ in pods if phase == "Running"}


_LED: set[str] = set()


def lead_here(net: str) -> None:
    if net not in _LED:
        _LED.add(net)
        subprocess.run(["ip", "route", "replace", "local", f"{net}.0/24", "dev", "lo"], check=True)


def lead_back() -> None:
    for net in _LED:
        subprocess.run(["ip", "route", "del", "local", f"{net}.0/24", "dev", "lo"], check=False)


# --- the operator ---------------------------------------------------------------------------------------------------


class Operator:
    def __init__(self, folder: Path) -> None:
        key = folder / "key"
        key.write_bytes(KEY)
        command = [sys.executable, "-P", "-m", "everstep.cli", "operator", "--namespace", NAMESPACE]
        images = ["--operator-image", "none", "--runtime-image", "none"]
        rest = ["--token-key-file", str(key), "--port", str(PORT)]
        self.log = folder / "operator.log"
        with self.log.open("ab") as log:
            environment = os.environ | {COORDINATOR_PORT: str(STUB_PORT)}
            self.process = subprocess.Popen([*command, *images, *rest], env=environment, stdout=log, stderr=log)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def cpu(self) -> float:
        return cpu_seconds(self.process.pid)

    def megabytes(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def looked_at(self) -> float:
        """Runs that this operator knows and has looked at."""
        metrics = self.metrics()
        known = sum(value for name, value in metrics.items() if name.startswith("everstep_runs{"))
        return min(known, metrics.get("everstep_reconcile_seconds_count", 0))

    def metrics(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def api_server() -> int | None:
    """Its process, if it is on this machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (folder / "cmdline").read_bytes().partition(b"\0")[0]
            if program.rpartition(b"/")[2] == b"kube-apiserver":
                return int(folder.name)
    return None


def requests(metrics: dict[str, float]) -> float:
    """Without the watches, of which there are two, and the Lease."""
    names = [n for n in metrics if n.startswith("everstep_api_requests_total") and 'verb="watch"' not in n]
    return sum(metrics[name] for name in names if 'resource="leases"' not in name)


def percentile(before: dict[str, float], after: dict[str, float], share: float) -> float:
    """Upper bound of the bucket of the histogram in which the percentile lies."""
    name = "everstep_event_to_action_seconds_bucket"
    counts = {float(k.split('le="')[1].split('"')[0]): v - before.get(k, 0) for k, v in after.items() if name in k}
    total = counts.get(float("inf"), 0)
    return next((limit for limit in sorted(counts) if counts[limit] >= share * total), float("nan"))


# --- the measurement ------------------------------------------------------------------------------------------------


async def measure(api: ApiServer, size: int, workers: int, rest: float, folder: Path) -> dict[str, Any]:
    await prepare(api)
    operator = Operator(folder)
    expected = size * (workers + 1)
    try:
        began = time.monotonic()
        places = asyncio.Semaphore(16)

        async def create(number: int) -> None:
            async with places:
                await api.request("POST", RUNS, body=manifest(number, workers))

        await asyncio.gather(*(create(number) for number in range(size)))
        while len(await running(api)) < expected:
            await asyncio.sleep(1)
            if time.monotonic() - began > 900:
                raise SystemExit(f"after 15 minutes {len(await running(api))} of {expected} pods run; {operator.log}")
        create_seconds = time.monotonic() - began
        while operator.metrics().get('everstep_runs{phase="Running"}', 0) < size:
            await asyncio.sleep(1)
            if time.monotonic() - began > 900:
                raise SystemExit(f"after 15 minutes not all runs are Running; {operator.log}")

        await asyncio.sleep(10)
        server = api_server()
        before, cpu, server_cpu = operator.metrics(), operator.cpu(), cpu_seconds(server) if server else 0.0
        at_rest = time.monotonic()
        await asyncio.sleep(rest)
        seconds = time.monotonic() - at_rest
        after = operator.metrics()
        result = {
            "runs": size,
            "pods": expected,
            "all pods run, s": round(create_seconds, 1),
            "operator CPU at rest": round((operator.cpu() - cpu) / seconds, 3),
            "API server CPU": round((cpu_seconds(server) - server_cpu) / seconds, 2) if server else None,
            "operator MB": round(operator.megabytes()),
            "requests/run/h": round((requests(after) - requests(before)) / seconds * 3600 / size),
        }

        victims = [f"run-{number:05}" for number in range(0, size, 10)]
        pods = await running(api)
        end = {"metadata": {"annotations": {"kwok.cluster.local/exit-code": "137"}}}
        before = operator.metrics()
        for name in pods:
            if any(name.startswith(f"{victim}-") for victim in victims) and name.endswith("-0-1"):
                await api.request("PATCH", f"{PODS}/{name}", body=end, content_type="application/merge-patch+json")
                await asyncio.sleep(1 / KILLS_PER_SECOND)
        while sum(name.endswith("-0-2") for name in await running(api)) < len(victims):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        result["event to action p99 <=, s"] = percentile(before, operator.metrics(), 0.99)

        pods = await running(api)
        operator.end()
        began = time.monotonic()
        operator = Operator(folder)
        while operator.looked_at() < size:  # noqa: ASYNC110 - it sends no events
            await asyncio.sleep(0.2)
        result["restart: full view, s"] = round(time.monotonic() - began, 1)
        result["restart: pods touched"] = len(set(pods.items()) ^ set((await running(api)).items()))
        return result
    finally:
        operator.end()
        await delete(api)


@contextlib.contextmanager
def stub_running() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-P", __file__, "--stub", str(STUB_PORT)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def main(sizes: list[int], workers: int, rest: float) -> None:
    api = ApiServer(await configuration())
    folder = Path(tempfile.mkdtemp(prefix="everstep-scale-"))
    rows = []
    try:
        with stub_running():
            for size in sizes:
                rows.append(await measure(api, size, workers, rest, folder))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        lead_back()
        await api.close()
    print()
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="50,100,200", help="numbers of runs, with commas between")
    parser.add_argument("--workers", type=int, default=4, help="pods of each run beside its coordinator")
    parser.add_argument("--rest", type=float, default=60.0, metavar="SECONDS", help="how long the rest is watched")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stub:
        stub(arguments.stub)
    else:
        asyncio.run(main([int(size) for size in arguments.sizes.split(",")], arguments.workers, arguments.rest))
