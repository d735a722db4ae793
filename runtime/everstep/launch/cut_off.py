"""Is this node cut off from the others? Then its ranks wait for peers that go on without them, and have to end.

A launcher that hears nothing from its coordinator cannot tell a dead coordinator, which training need not notice, from
a dead network, behind which a replacement may run already. Its ranks can: they meet the others in every step. Standing
still for much longer than they ever did, with no coordinator to be heard, they are of no use to anybody.
"""

from everstep_protocol.messages import LOST_SECONDS, RankState

#: Ranks that stand still for less are never ended. A launcher lets go before the coordinator gives it up, and long
#: before its pod is replaced.
CUT_OFF_SECONDS = LOST_SECONDS - 2.0
#: Nor those that stand still for less than so many times their longest step.
SLOWEST_STEPS = 3.0


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
