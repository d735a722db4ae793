"""Neighbours talk; anybody else is refused, and both versions are named."""

import pytest

from everstep_protocol.version import PROTOCOL_VERSION, ProtocolMismatch, check_peer

MINE = 7


@pytest.mark.parametrize("peer", [MINE - 1, MINE, MINE + 1, str(MINE), f" {MINE} "])
def test_neighbours_talk(peer: int | str) -> None:
    assert check_peer(peer, who="the launcher", mine=MINE) == int(peer)


@pytest.mark.parametrize(
    ("peer", "old"), [(MINE - 2, "the launcher"), (MINE + 2, "this side"), (0, "the launcher"), (99, "this side")]
)
def test_others_are_refused_by_name(peer: int, old: str) -> None:
    with pytest.raises(ProtocolMismatch) as refused:
        check_peer(peer, who="the launcher", mine=MINE)
    assert f"the launcher speaks protocol version {peer}" in str(refused.value)
    assert f"this side speaks {MINE}" in str(refused.value)
    assert str(refused.value).endswith(f"Upgrade {old}.")


@pytest.mark.parametrize("peer", [None, "", "one", "1.0"])
def test_no_version_is_refused(peer: str | None) -> None:
    with pytest.raises(ProtocolMismatch, match=f"this side speaks version {PROTOCOL_VERSION}"):
        check_peer(peer, who="the launcher")
