"""One side of the conversation: connections that break, coordinators that refuse, words that cannot wait."""

import threading
from contextlib import closing
from dataclasses import replace

import pytest

from everstep.launch.link import Client, Link, LinkError, Refused, Unreachable
from everstep_protocol.messages import AgentState, Directive

from .harness import TOKEN, ScriptedCoordinator, eventually, wait

STATE = AgentState(agent="a", node=0, address="127.0.0.1", port=1, nproc=1)


def client(coordinator: ScriptedCoordinator, token: str = TOKEN, timeout: float = 10.0) -> "closing[Client]":
    return closing(Client(f"http://{coordinator.endpoint}", token, timeout))


def test_a_connection_that_was_closed_while_idle_is_no_death() -> None:
    with ScriptedCoordinator(lambda state: wait(3)) as coordinator, client(coordinator) as mine:
        assert mine.sync(STATE) == wait(3)
        coordinator.hang_up()
        assert mine.sync(STATE) == wait(3)
    assert len(coordinator.states) == 2


def test_nobody_there() -> None:
    with ScriptedCoordinator() as coordinator:
        nobody = client(coordinator)
    with (
        nobody as mine,
        pytest.raises(Unreachable, match=r"coordinator http://127.0.0.1:\d+ does not answer: .*refused"),
    ):
        mine.sync(STATE)


def test_a_silent_coordinator_is_given_up() -> None:
    silent = threading.Event()

    def never(state: AgentState) -> Directive:
        silent.wait(30)
        return wait()

    with ScriptedCoordinator(never) as coordinator:
        with client(coordinator, timeout=0.2) as mine, pytest.raises(Unreachable, match="timed out"):
            mine.sync(STATE)
        silent.set()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"version": "7"}, Refused, "speaks protocol version 7, this side speaks 1"),
        ({"version": "teapot"}, Refused, "no readable protocol version"),
        ({"status": 426}, Refused, r"refuses: .* \(status 426\)"),
        ({"status": 503}, Unreachable, "status 503"),
    ],
)
def test_answers_that_are_none(change: dict[str, object], error: type[LinkError], says: str) -> None:
    with ScriptedCoordinator(lambda state: wait()) as coordinator:
        vars(coordinator).update(change)
        with client(coordinator) as mine, pytest.raises(error, match=says):
            mine.sync(STATE)


def test_a_wrong_token() -> None:
    with (
        ScriptedCoordinator() as coordinator,
        client(coordinator, token="another") as mine,
        pytest.raises(Refused, match="wrong token"),
    ):
        mine.sync(STATE)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "https://h:1", "http://h"])
def test_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        Client(url, TOKEN)


def test_news_break_off_the_poll_in_flight() -> None:
    held = threading.Event()

    def policy(state: AgentState) -> Directive:
        if state.generation == 0:
            held.wait(30)  # a poll without news
        return wait(state.generation)

    woken = threading.Event()
    with ScriptedCoordinator(policy) as coordinator:
        link = Link(Client(f"http://{coordinator.endpoint}", TOKEN), woken.set)
        link.offer(STATE)
        eventually(lambda: coordinator.states)
        link.offer(replace(STATE, generation=2))
        assert woken.wait(10)
        assert link.take() == wait(2), "the first answer is of no interest any more"
        assert link.take() is None
        assert link.idle
        assert [state.generation for state in coordinator.states] == [0, 2], "what is out of date is not repeated"
        link.close()
        held.set()
