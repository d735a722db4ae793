"""What is said when a status changes."""

from datetime import UTC, datetime, timedelta

import pytest

from everstep_operator.api.trainingrun import (
    Attempt,
    GoodputStatus,
    LastCheckpoint,
    Phase,
    ProgressStatus,
    Restarts,
    ResumedFrom,
    Status,
    TrainingRun,
)
from everstep_operator.commands.news import news, summary
from everstep_operator.plan.conditions import with_condition

T0 = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
FAILURE = Attempt(generation=1, reason="Killed", message="killed by SIGKILL", node=1, rank=4, step=228, time=T0)


def run(**status: object) -> TrainingRun:
    return TrainingRun.model_validate(
        {
            "metadata": {"name": "digits"},
            "spec": {"trainer": {"command": ["python", "train.py"]}, "failurePolicy": {"maxRestarts": 5}},
        }
    ).model_copy(update={"status": Status(**{"phase": Phase.RUNNING, **status})})  # type: ignore[arg-type]


def checkpoint(step: int) -> LastCheckpoint:
    return LastCheckpoint(step=step, uri=f"s3://b/p/{step}", time=T0, world_size=3, verified=True)


def test_nothing_new_nothing_said() -> None:
    assert news(run(), run()) == []
    moving = run(progress=ProgressStatus(step=5, loss=0.1), last_checkpoint=checkpoint(4))
    assert news(run(), moving) == []


def test_a_failure_and_its_restart() -> None:
    after = run(phase=Phase.RESTARTING, attempts=(FAILURE,), restarts=Restarts(total=1))
    assert news(run(), after) == [
        "rank 4 on node 1 failed at step 228: Killed: killed by SIGKILL",
        "restarting: 1 of at most 5 restarts",
    ]
    assert news(after, after) == []


def test_the_last_failure_is_followed_by_no_restart() -> None:
    before = run(restarts=Restarts(total=1))
    after = run(phase=Phase.FAILED, attempts=(FAILURE,), restarts=Restarts(total=1))
    assert news(before, after) == ["rank 4 on node 1 failed at step 228: Killed: killed by SIGKILL"]


def test_a_pod_that_died_before_it_trained() -> None:
    early = Attempt(reason="Unknown", message="", node=None, time=T0)
    assert news(run(), run(attempts=(early,))) == ["a pod failed: Unknown"]


def test_a_disruption_is_not_counted() -> None:
    after = run(phase=Phase.RESTARTING, reason="Disrupted", message="a node was drained")
    assert news(run(), after) == ["restarting, not counted: a node was drained"]


def test_a_failure_whose_cause_is_still_looked_for_is_told_when_it_is_known() -> None:
    seen = run(phase=Phase.RESTARTING, reason="RankFailed", message="a rank has failed: stopping the others")
    assert news(run(), seen) == []
    known = run(phase=Phase.RESTARTING, reason="Killed", attempts=(FAILURE,), restarts=Restarts(total=1))
    assert news(seen, known) == [
        "rank 4 on node 1 failed at step 228: Killed: killed by SIGKILL",
        "restarting: 1 of at most 5 restarts",
    ]


def test_a_resume_and_why_not_from_a_newer_one() -> None:
    resumed = ResumedFrom(step=220, uri="s3://b/p/220")
    assert news(run(), run(resumed_from=resumed)) == ["resumed from step 220 (s3://b/p/220)"]
    fell = ResumedFrom(step=200, uri="s3://b/p/200", note="step 220: shard 1 is truncated")
    assert news(run(resumed_from=resumed), run(resumed_from=fell)) == [
        "about the checkpoints: step 220: shard 1 is truncated",
        "resumed from step 200 (s3://b/p/200)",
    ]


def test_saving_fails_and_works_again() -> None:
    bad = run(not_durable_since=T0, last_checkpoint=checkpoint(200))
    (sentence,) = news(run(), bad)
    assert sentence.startswith("checkpoints fail since ")
    assert sentence.endswith("; training goes on, a failure now would lose the work since step 200")
    why = with_condition(bad.status, "CheckpointsDurable", "False", "SavingFails", "no space left", T0)
    assert ": no space left; training goes on" in news(run(), bad.model_copy(update={"status": why}))[0]
    assert news(bad, run(last_checkpoint=checkpoint(220))) == ["checkpoints work again: step 220 is saved"]
    (nothing,) = news(run(), run(not_durable_since=T0))
    assert "nothing is saved yet" in nothing


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({}, "0 restarts, no checkpoint"),
        (
            {
                "progress": ProgressStatus(step=1),
                "restarts": Restarts(total=1),
                "goodput": GoodputStatus(ratio=0.876),
                "last_checkpoint": checkpoint(1),
                "start_time": T0,
                "completion_time": T0 + timedelta(seconds=31),
            },
            "1 step, 1 restart, goodput 88%, last checkpoint step 1 at s3://b/p/1, 31 s",
        ),
    ],
)
def test_the_closing_line(status: dict[str, object], line: str) -> None:
    assert summary(run(**status)) == line
