"""Version skew between operator, coordinator and the everstep inside a user's image is normal: N and N-1 talk."""

PROTOCOL_VERSION = 1

#: HTTP header that carries the sender's protocol version on every request and reply.
HEADER = "Everstep-Protocol"


class ProtocolMismatch(Exception):
    """The peer speaks a protocol version that this side neither speaks nor remembers."""


def check_peer(peer: str | int | None, *, who: str, mine: int = PROTOCOL_VERSION) -> int:
    """Return the peer's version as a number.

    Raises:
        ProtocolMismatch: the peer is more than one version away, or sent no readable version; both versions are named.
    """
    try:
        version = int(peer)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ProtocolMismatch(
            f"{who} sent no readable protocol version ({peer!r}); this side speaks version {mine}. "
            f"Is it an everstep process at all?"
        ) from None
    if abs(version - mine) > 1:
        older = "this side" if mine < version else who
        raise ProtocolMismatch(
            f"{who} speaks protocol version {version}, this side speaks {mine}; only neighbours understand each other. "
            f"Upgrade {older}."
        )
    return version
