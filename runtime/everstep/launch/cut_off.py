"""Is this node cut off from the others? Then its ranks wait for peers that go on without them, and have to end.

A launcher that hears nothing from its coordinator cannot tell a dead coordinator, which training need not notice, from
a dead network, behind which a replacement may run already. Its ranks can: they meet the others in every step. Standing
still for much longer than they ever did, with no coordinator to be heard, they are of no use to anybody. A single
node meets nobody, so it needs a witness.
"""

import socket
import threading
import time
from collections.abc import Callable

from everstep_protocol.messages import LOST_SECONDS, RankState

#: Ranks that stand still for less are never ended. A launcher lets go before the coordinator gives it up, and long
#: before its pod is replaced.
CUT_OFF_SECONDS = LOST_SECONDS - 2.0
#: Nor those that stand still for less than so many times their longest step.
SLOWEST_STEPS = 3.0
#: A witness that is there answers in milliseconds.
ANSWER_SECONDS = 1.0


class Standstill:
    """How long the ranks of one round have been where they are."""

    def __init__(self, now: float) -> None:
        self._ranks: tuple[RankState, ...] = ()
        self._since = now
        self._longest = 0.0  # between two steps; what comes before the first has its own pace

    def see(self, ranks: tuple[RankState, ...], now: float) -> None:
        if ranks == self._ranks:
            return
        if any(rank.step > 0 for rank in self._ranks):
            self._longest = max(self._longest, now - self._since)
        self._ranks, self._since = ranks, now

    def is_cut_off(self, heard: float, now: float) -> bool:
        """`heard`: when the coordinator last answered."""
        limit = max(CUT_OFF_SECONDS, SLOWEST_STEPS * self._longest)
        return now - max(heard, self._since) > limit


class Witness:
    """Somebody on another node who accepts connections, whoever else is down: the API server of the cluster.

    One that has never answered is none: a NetworkPolicy may keep pods away from it.
    """

    def __init__(self, address: tuple[str, int] | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`address`: host and port. None: there is no witness, and nothing is ever cut off."""
        self._address = address
        self._clock = clock
        self._heard: float | None = None
        self._asking: threading.Thread | None = None

    def ask(self) -> None:
        """In the background: a launcher has more to do than to wait for an answer that may not come."""
        if self._address is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._connect, args=(self._address,), daemon=True)
            self._asking.start()

    def is_missed(self, heard: float, now: float) -> bool:
        """Neither it nor the coordinator, which last answered at `heard`, has been there for too long."""
        return self._heard is not None and now - max(heard, self._heard) > CUT_OFF_SECONDS

    def _connect(self, address: tuple[str, int]) -> None:
        try:
            socket.create_connection(address, ANSWER_SECONDS).close()
        except OSError:
            return
        self._heard = self._clock()
