"""Who trains together: seats in the order of node indices, and when there are enough of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from everstep_protocol.messages import AgentState, Intent, Round


@dataclass(frozen=True)
class Seat:
    """One agent's place in a round."""

    agent: str
    node: int  # index in the run; may have gaps
    pod: str
    address: str
    nproc: int
    rank_offset: int  # global rank of its local rank 0


@dataclass(frozen=True)
class Formation:
    """A round as the coordinator knows it. Part of the memory, so that a successor knows who trains."""

    generation: int
    seats: tuple[Seat, ...]
    master_address: str
    master_port: int
    restarts: int

    @property
    def world_size(self) -> int:
        return sum(seat.nproc for seat in self.seats)

    def seat_of(self, agent: str) -> Seat | None:
        return next((seat for seat in self.seats if seat.agent == agent), None)

    def round_of(self, seat: Seat) -> Round:
        """What the agent on this seat is told."""
        return Round(
            generation=self.generation,
            rank_offset=seat.rank_offset,
            world_size=self.world_size,
            node_rank=self.seats.index(seat),
            nodes=len(self.seats),
            master_address=self.master_address,
            master_port=self.master_port,
            restarts=self.restarts,
        )


def whole(present: int, intent: Intent) -> int:
    """How many of the nodes that are there may train together: min_nodes plus a multiple of the step."""
    nodes = min(present, intent.nodes)
    return nodes if nodes < intent.min_nodes else nodes - (nodes - intent.min_nodes) % intent.step


def enough(present: int, intent: Intent, waited: float, join_seconds: float) -> bool:
    """All wanted nodes are there; or, after `join_seconds`, as many as the run needs at least."""
    return present >= intent.nodes or (present >= intent.min_nodes and waited >= join_seconds)


def form(ready: Iterable[tuple[int, AgentState]], generation: int, intent: Intent, restarts: int) -> Formation:
    """The round of the lowest node indices among `ready` (node index, state), as many as may train together."""
    chosen = sorted(ready, key=lambda item: item[0])
    chosen = chosen[: whole(len(chosen), intent)]
    seats: list[Seat] = []
    offset = 0
    for node, state in chosen:
        seats.append(Seat(state.agent, node, state.pod, state.address, state.nproc, offset))
        offset += state.nproc
    # Rank 0's node hosts the store of the round, on the port that its agent found free.
    master = chosen[0][1]
    return Formation(generation, tuple(seats), master.address, master.port, restarts)
