"""What a coordinator must not forget. It travels with every directive; a successor asks the agents for the newest."""

from dataclasses import dataclass
from typing import Any

from everstep_operator.coordinator.goodput import Ledger
from everstep_operator.coordinator.limit import Agreement
from everstep_operator.coordinator.restarts import Record
from everstep_operator.coordinator.rounds import Formation
from everstep_protocol import codec
from everstep_protocol.messages import RunState, StopCause
from everstep_protocol.reasons import Failure


@dataclass(frozen=True)
class Memory:
    author: int  # which coordinator wrote it
    version: int  # of the directives it went out with; grows over coordinators
    generation: int  # the last one that was formed
    formation: Formation | None  # who trains now
    failing: bool  # that generation has failed, its root cause is being looked for
    agreement: Agreement | None
    proposals: int  # numbers of proposals that were used
    stop: StopCause | None
    outcome: RunState | None
    message: str
    record: Record
    failures: tuple[Failure, ...]  # without tracebacks
    ledger: Ledger

    @property
    def age(self) -> tuple[int, float]:
        """Orders memories: the greatest is the newest."""
        return self.version, self.ledger.since


def recall(data: dict[str, Any] | None) -> Memory | None:
    """A memory that an agent gives back; None if there is none, or one that this version cannot read."""
    try:
        return codec.decode(Memory, data) if data else None
    except codec.BadMessage:
        return None
