"""How often progress is written. Time is the test's."""

from everstep_operator.api.trainingrun import GoodputStatus, Phase, ProgressStatus, Status
from everstep_operator.writes import EVERY_SECONDS, ProgressWrites


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def at(step: int, percent: int | None = None, **fields: object) -> Status:
    progress = ProgressStatus(step=step, percent=percent)
    return Status(phase=Phase.RUNNING, progress=progress).model_copy(update=fields)


def test_progress_waits_and_everything_else_does_not() -> None:
    clock = Clock()
    writes = ProgressWrites(clock)
    assert not writes.can_wait("a", Status(), at(1)), "a new phase"
    clock.now += 1
    assert writes.can_wait("a", at(1), at(2))
    assert writes.can_wait("a", at(1), at(2, goodput=GoodputStatus(ratio=0.5)))
    assert not writes.can_wait("a", at(1), at(2, reason="Restarting"))


def test_after_half_a_minute_it_is_time() -> None:
    clock = Clock()
    writes = ProgressWrites(clock)
    writes.can_wait("a", Status(), at(1))
    clock.now += EVERY_SECONDS - 1
    assert writes.can_wait("a", at(1), at(50))
    clock.now += 1
    assert not writes.can_wait("a", at(1), at(51))
    assert writes.can_wait("a", at(51), at(52)), "and then it waits again"


def test_a_whole_percent_is_worth_telling() -> None:
    clock = Clock()
    writes = ProgressWrites(clock)
    writes.can_wait("a", Status(), at(1, 1))
    assert writes.can_wait("a", at(1, 1), at(9, 1))
    assert not writes.can_wait("a", at(1, 1), at(10, 2))


def test_all_runs_together_write_no_more_than_allowed() -> None:
    clock = Clock()
    writes = ProgressWrites(clock, per_second=5)
    told = [uid for uid in map(str, range(100)) if not writes.can_wait(uid, at(1, 1), at(9, 2))]
    assert len(told) == 5
    clock.now += 2
    told = [uid for uid in map(str, range(100)) if not writes.can_wait(uid, at(1, 1), at(9, 2))]
    assert len(told) == 5, "what was not used is not kept for later"
    assert not writes.can_wait("x", at(1), at(1, phase=Phase.FAILED)), "what is no progress is never held up"
