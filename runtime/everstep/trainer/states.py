"""What a Trainer is doing, in Lightning's words."""

from dataclasses import dataclass
from enum import StrEnum


class TrainerStatus(StrEnum):
    INITIALIZING = "initializing"  # no call yet
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # by an exception

    @property
    def stopped(self) -> bool:
        return self in (self.FINISHED, self.INTERRUPTED)


class TrainerFn(StrEnum):
    """The Trainer call."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(StrEnum):
    """What happens in the call: a fit trains, checks and validates."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        return self in (self.VALIDATING, self.TESTING, self.SANITY_CHECKING)


STAGES = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}


@dataclass
class TrainerState:
    """`fn` is the call that is running, or was the last; `stage` is None between calls."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        return self.status.stopped

    def begin(self, fn: TrainerFn) -> None:
        self.status, self.fn, self.stage = TrainerStatus.RUNNING, fn, STAGES[fn]

    def end(self, status: TrainerStatus) -> None:
        self.status, self.stage = status, None
