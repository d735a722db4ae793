"""What is known of the training itself: how far it has come, what is saved of it, and where its time goes."""

from collections.abc import Iterable

from everstep_operator.coordinator.goodput import Ledger, Spent
from everstep_protocol.messages import AgentState, CheckpointInfo, Progress, Stage
from everstep_protocol.reasons import Failure

_BEYOND_START = (Stage.EVALUATING, Stage.AT_LIMIT, Stage.SAVING, Stage.DONE)


class Training:
    """Over all generations; times called `at` are seconds since the epoch."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.progress: Progress | None = None
        self.last_checkpoint: CheckpointInfo | None = None
        self.resumed_from: CheckpointInfo | None = None
        self.not_durable_since: float | None = None
        self.not_durable_why = ""
        # Of the current generation:
        self.furthest = 0  # step that any rank has entered
        self.stepped = False  # a step was finished
        self._resumed_at = 0  # step that it resumed from

    @property
    def durable_step(self) -> int:
        return self.last_checkpoint.step if self.last_checkpoint is not None else 0

    def reached(self, failure: Failure) -> int:
        """How far the rank came that failed: whether another one was a step ahead is a matter of chance."""
        return max(failure.step or self.furthest, self._resumed_at)

    # What is told.

    def hear(self, states: Iterable[AgentState], proposal: int, at: float) -> None:
        """What the agents say of the current generation; `proposal`: the number of the last proposed agreed step."""
        finished, beyond = 0, False
        for state in states:
            self.furthest = max(self.furthest, *(rank.step for rank in state.ranks), 0)
            if state.ack is not None and state.ack.proposal == proposal:
                self.furthest = max(self.furthest, state.ack.max_step)
            if state.progress is not None:
                self.progress = state.progress
                self.not_durable_since, self.not_durable_why = state.not_durable_since, state.not_durable_why
                finished = max(finished, state.progress.step)
            self.last_checkpoint = state.last_checkpoint or self.last_checkpoint
            if state.resumed_from is not None:
                self.resumed_from, self._resumed_at = state.resumed_from, state.resumed_from.step
            beyond = beyond or any(rank.stage in _BEYOND_START for rank in state.ranks)
        finished = max(self.furthest - 1, finished)
        self.stepped = self.stepped or finished > self._resumed_at or beyond
        caught_up = self.ledger.phase is Spent.LOST and finished >= self.ledger.target
        if caught_up or (self.ledger.phase is Spent.STARTUP and self.stepped):
            self.ledger = self.ledger.enter(Spent.PRODUCTIVE, at)

    def recall(self, ledger: Ledger) -> None:
        """A predecessor wrote this. How far the generation is, its agents say."""
        self.ledger = ledger
        self.furthest, self.stepped, self._resumed_at = 0, ledger.phase is Spent.PRODUCTIVE, 0

    # What happens to it.

    def begin(self, at: float) -> None:
        """A generation is formed."""
        self.furthest, self.stepped, self._resumed_at = 0, False, 0
        if self.ledger.phase is Spent.WAITING:
            self.ledger = self.ledger.enter(Spent.STARTUP, at)

    def fail(self, reason: str, step: int, at: float) -> None:
        """The generation is lost; the rank to blame had entered `step`."""
        self.ledger = self.ledger.fail(at, reason, max(step, self.furthest))

    def wait(self, at: float) -> None:
        """For launchers, after a stop."""
        self.ledger = self.ledger.enter(Spent.WAITING, at)

    def end(self, at: float) -> None:
        self.ledger = self.ledger.enter(Spent.OVER, at)
