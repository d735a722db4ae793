"""Where the wall time went. One phase at a time is open, so the parts add up to the whole."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from everstep_protocol.messages import Goodput


class Spent(StrEnum):
    WAITING = "waiting"
    STARTUP = "startup"
    PRODUCTIVE = "productive"
    LOST = "lost"
    OVER = "over"  # nothing is counted


@dataclass(frozen=True)
class Ledger:
    """Seconds by phase. Part of the memory; times are seconds since the epoch, for a successor on another machine."""

    since: float  # when the open phase began
    phase: Spent = Spent.WAITING
    reason: str = ""  # of what is being lost
    target: int = 0  # the step that has to be finished (again) until it is no longer lost
    waiting: float = 0.0
    startup: float = 0.0
    productive: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)

    @classmethod
    def after(cls, before: Goodput, since: float) -> "Ledger":
        """Goes on from what was counted before."""
        return cls(
            since, waiting=before.waiting, startup=before.startup, productive=before.productive, lost=before.lost
        )

    def enter(self, phase: Spent, at: float, reason: str = "", target: int = 0) -> "Ledger":
        """Close the open phase at the time `at` and open another."""
        return replace(self._until(at), phase=phase, reason=reason, target=target)

    def fail(self, at: float, reason: str, step: int) -> "Ledger":
        """A generation that had entered `step` is lost: its redone work counts until that step is finished."""
        redo = self.target if self.phase is Spent.LOST else 0
        return self.enter(Spent.LOST, at, reason, max(redo, step, 1))

    def goodput(self, at: float) -> Goodput:
        closed = self._until(at)
        wall = closed.waiting + closed.startup + closed.productive + sum(closed.lost.values())
        return Goodput(wall, closed.productive, closed.waiting, closed.startup, closed.lost)

    def _until(self, at: float) -> "Ledger":
        seconds = max(0.0, at - self.since)
        at = max(at, self.since)  # a clock that was set back takes nothing away
        match self.phase:
            case Spent.WAITING:
                return replace(self, since=at, waiting=self.waiting + seconds)
            case Spent.STARTUP:
                return replace(self, since=at, startup=self.startup + seconds)
            case Spent.PRODUCTIVE:
                return replace(self, since=at, productive=self.productive + seconds)
            case Spent.LOST:
                lost = {**self.lost, self.reason: self.lost.get(self.reason, 0.0) + seconds}
                return replace(self, since=at, lost=lost)
            case Spent.OVER:
                return replace(self, since=at)
