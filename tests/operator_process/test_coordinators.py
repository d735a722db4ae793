"""What the operator hears of coordinators, over whatever network."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from aiohttp import web

from everstep_operator.cluster.kubernetes import Tokens
from everstep_operator.cluster.kubernetes.coordinators import Coordinators
from everstep_operator.cluster.state import free_ports
from everstep_operator.coordinator.run import Run
from everstep_operator.coordinator.server import Server, Service
from everstep_operator.plan.model import Silence
from everstep_protocol import codec
from everstep_protocol.messages import INTENT, PROGRESS, Intent, Member, Report, RunState, Workers
from everstep_protocol.version import HEADER, PROTOCOL_VERSION

TOKENS = Tokens(b"a key of thirty-two secret bytes")


def report(nodes: int) -> Report:
    members = tuple(
        Member(node, f"agent-{node}", f"pod-{node}", "10.0.0.1", Workers.RUNNING, 1, (), 0.0) for node in range(nodes)
    )
    return Report(PROTOCOL_VERSION, RunState.RUNNING, 1, nodes, 0, members=members)


@asynccontextmanager
async def answering(pieces: Sequence[bytes], version: int = PROTOCOL_VERSION) -> AsyncIterator[Coordinators]:
    """A coordinator of that protocol version, whose answer is on the network in these pieces."""

    async def answer(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={HEADER: str(version)})
        reply.content_length = sum(map(len, pieces))
        await reply.prepare(request)
        with suppress(ConnectionError):
            for piece in pieces:
                await reply.write(piece)
                await asyncio.sleep(0.001)  # or the kernel makes one of two
        return reply

    app = web.Application()
    app.router.add_get(PROGRESS, answer)
    app.router.add_put(INTENT, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    coordinators = Coordinators(TOKENS, runner.addresses[0][1])
    try:
        yield coordinators
    finally:
        await coordinators.close()
        await runner.cleanup()


def test_a_report_that_comes_in_pieces_is_heard_whole() -> None:
    told = report(nodes=200)
    body = codec.dumps(told)

    async def story() -> None:
        async with answering([body[:1_300], body[1_300:]]) as coordinators:
            assert await coordinators.report("127.0.0.1", "uid") == told

    asyncio.run(story())


def test_a_report_that_would_fill_the_memory_is_not_read_to_its_end() -> None:
    body = codec.dumps(replace(report(nodes=1), message="m" * (17 << 20)))

    async def story() -> None:
        async with answering([body]) as coordinators:
            answer = await coordinators.report("127.0.0.1", "uid")
            assert isinstance(answer, Silence)
            assert answer.refuses

    asyncio.run(story())


@pytest.mark.parametrize("version", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_a_coordinator_of_the_version_before_or_after_is_understood(version: int) -> None:
    """An operator that was upgraded under a run. What an older one does not know it does not say, and the reverse."""
    told = codec.encode(report(nodes=2)) | {"protocol": version}
    if version < PROTOCOL_VERSION:
        del told["seconds_up"]  # this field came after the first coordinators
    else:
        told["moons"] = 3
    body = json.dumps(told).encode()

    async def story() -> None:
        async with answering([body], version) as coordinators:
            heard = await coordinators.report("127.0.0.1", "uid")
            assert isinstance(heard, Report)
            assert [member.pod for member in heard.members] == ["pod-0", "pod-1"]
            assert heard == await coordinators.tell("127.0.0.1", "uid", Intent(nodes=2, min_nodes=2, max_restarts=3))

    asyncio.run(story())


def test_a_coordinator_of_two_versions_before_is_not_heard_and_both_are_named(caplog: pytest.LogCaptureFixture) -> None:
    version = PROTOCOL_VERSION - 2

    async def story() -> None:
        async with answering([codec.dumps(report(nodes=2))], version) as coordinators:
            answer = await coordinators.report("127.0.0.1", "uid")
            assert isinstance(answer, Silence)
            assert answer.refuses

    asyncio.run(story())
    assert f"the coordinator speaks protocol version {version}, this side speaks {PROTOCOL_VERSION}" in caplog.text
    assert "Upgrade the coordinator." in caplog.text


def test_who_is_not_heard_is_told_of_with_the_why_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        coordinators = Coordinators(TOKENS, free_ports(1)[0])
        try:
            for _ in range(3):
                answer = await coordinators.report("127.0.0.1", "run-uid")
                assert isinstance(answer, Silence)
                assert not answer.refuses
                assert "does not answer" in answer.why
        finally:
            await coordinators.close()

    asyncio.run(story())
    assert [record.getMessage().count("run-uid gives no report") for record in caplog.records] == [1]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_coordinator_is_heard_by_ipv4_and_ipv6_and_names_another_key(address: str) -> None:
    if ":" in address and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    now = time.monotonic()
    wanted = Intent(nodes=1, min_nodes=1, max_restarts=0)
    server = Server(Service(Run(wanted, now, epoch=time.time() - now)), "", 0, TOKENS.of("uid"))
    server.start()

    async def story() -> None:
        ours, others = Coordinators(TOKENS, server.port), Coordinators(Tokens(b"k" * 32), server.port)
        try:
            heard = await ours.report(address, "uid")
            assert isinstance(heard, Report)
            assert heard.intent == wanted
            refused = await others.report(address, "uid")
            assert isinstance(refused, Silence)
            assert refused.refuses
            assert "401: wrong or missing token" in refused.why
            assert "tokenKey.existingSecret" in refused.why
        finally:
            await ours.close()
            await others.close()

    try:
        asyncio.run(story())
    finally:
        server.close()
