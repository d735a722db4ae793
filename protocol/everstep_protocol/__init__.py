"""The conversation between the operator and the runtime: messages, names and file formats that both halves agree on.

Standard library only. Both halves import this package; it imports neither.
"""

from everstep_protocol.version import PROTOCOL_VERSION, ProtocolMismatch, check_peer

__all__ = ["PROTOCOL_VERSION", "ProtocolMismatch", "check_peer"]
