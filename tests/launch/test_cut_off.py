"""Cut off, or only without a coordinator? Told by how long the ranks stand still."""

import socket

import pytest

from everstep.launch.cut_off import CUT_OFF_SECONDS, Standstill, Witness
from everstep_protocol.messages import RankState


def at(step: int) -> tuple[RankState, ...]:
    return (RankState(rank=0, pid=1, step=step),)


def trained(seconds_per_step: float, steps: int = 5) -> Standstill:
    """Up to time 0."""
    standstill = Standstill(-1_000.0)
    for step in range(1, steps + 1):
        standstill.see(at(step), seconds_per_step * (step - steps))
    return standstill


def test_standing_still_in_silence_is_cut_off() -> None:
    standstill = trained(0.1)
    assert not standstill.is_cut_off(0.0, CUT_OFF_SECONDS)
    assert standstill.is_cut_off(0.0, CUT_OFF_SECONDS + 0.1)


def test_who_takes_steps_is_not() -> None:
    standstill = trained(0.1)
    standstill.see(at(6), 99.0)
    assert not standstill.is_cut_off(0.0, 100.0)


def test_nor_who_stands_still_and_hears_the_coordinator() -> None:
    assert not trained(0.1).is_cut_off(99.0, 100.0)


def test_long_steps_are_no_standstill() -> None:
    standstill = trained(60.0)
    assert not standstill.is_cut_off(0.0, 179.0)
    assert standstill.is_cut_off(0.0, 181.0)


def test_a_slow_start_says_nothing_about_the_steps() -> None:
    standstill = Standstill(0.0)
    standstill.see(at(0), 1.0)
    standstill.see(at(1), 500.0)
    assert standstill.is_cut_off(500.0, 500.0 + CUT_OFF_SECONDS + 0.1)


def test_a_witness_that_answered_and_does_not_any_more_is_missed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        witness = Witness(server.getsockname(), clock=lambda: 50.0)
        asked(witness)
    asked(witness)
    assert not witness.is_missed(heard=0.0, now=50.0 + CUT_OFF_SECONDS)
    assert witness.is_missed(heard=0.0, now=50.1 + CUT_OFF_SECONDS)
    assert not witness.is_missed(heard=50.1, now=50.1 + CUT_OFF_SECONDS), "the coordinator counts as well"


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 1)], ids=["none", "one that never answered"])
def test_without_a_witness_nothing_is_cut_off(address: tuple[str, int] | None) -> None:
    witness = Witness(address)
    asked(witness)
    assert not witness.is_missed(heard=0.0, now=1e6)


def asked(witness: Witness) -> None:
    witness.ask()
    if witness._asking is not None:
        witness._asking.join()
