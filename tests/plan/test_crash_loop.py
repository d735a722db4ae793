"""Pods that end as soon as they are there: their replacements wait, longer each time, and their last words are told."""

from collections.abc import Callable
from itertools import pairwise

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.plan.model import CreatePod, Plan, Pod
from tests.plan.builders import (
    at,
    created_places,
    dead,
    plan,
    pod,
    report,
    run,
    running,
    then,
)

WORDS = ("Traceback", "BadMessage: an intent of a later version")


def dead_coordinator(attempt: int, second: float) -> Pod:
    return dead(None, attempt, exit_code=2, last_lines=WORDS, created=at(second))


def rejected(attempt: int, second: float) -> Pod:
    message = "OutOfnvidia.com/gpu: Node didn't have enough resource"
    return pod(1, attempt, phase="Failed", disrupted=True, message=message, created=at(second))


def history(run: TrainingRun, pods: Callable[[int, float], list[Pod]], until: int) -> tuple[list[int], list[Plan]]:
    """Seconds at which a pod is created while each one ends at once; a look each second, and the plans."""
    created, attempt, plans = [0], 1, []
    for second in range(1, until):
        plans.append(plan(run, pods(attempt, created[-1]), None, second))
        run = then(run, plans[-1])
        new = [action.spec for action in plans[-1].actions if isinstance(action, CreatePod)]
        if new:
            created.append(second)
            attempt = new[0].attempt
    return created, plans


def begun(**spec: object) -> TrainingRun:
    new = run(**spec)  # type: ignore[arg-type]
    return then(new, plan(new))


def test_coordinator_that_cannot_live_is_replaced_less_and_less_often_and_ends_a_run_that_never_began() -> None:
    created, plans = history(begun(), lambda attempt, second: [dead_coordinator(attempt, second), pod(0), pod(1)], 400)
    pauses = [later - earlier for earlier, later in pairwise(created)]
    assert pauses == sorted(pauses)
    assert 5 <= len(created) <= 12
    assert plans[10].wake_after is not None
    early, last = plans[10].status, plans[-1].status
    assert (early.phase, early.reason, early.restarts.total) == ("Starting", "CoordinatorFailed", 0)
    assert "exited with 2: Traceback; BadMessage: an intent of a later version" in early.message
    assert (last.phase, last.reason) == ("Failed", "CoordinatorFailed")
    assert "BadMessage" in last.message
    assert [event.reason for each in plans for event in each.events].count("CoordinatorFailed") == 1


def test_start_up_deadline_comes_first_and_says_what_the_coordinator_said() -> None:
    short = begun(failurePolicy={"startup": {"deadlineSeconds": 100}})
    _, plans = history(short, lambda attempt, second: [dead_coordinator(attempt, second), pod(0), pod(1)], 102)
    assert plans[-1].status.reason == "StartupDeadlineExceeded"
    assert "BadMessage" in plans[-1].status.message


def test_training_goes_on_without_its_coordinator_and_the_status_says_that_it_fails() -> None:
    _, plans = history(running(), lambda attempt, second: [dead_coordinator(attempt, second), pod(0), pod(1)], 400)
    status = plans[-1].status
    assert (status.phase, status.reason) == ("Running", "Training")
    assert "BadMessage" in status.message


def test_coordinator_that_had_lived_is_replaced_at_once() -> None:
    after = plan(running(), [dead_coordinator(1, 0), pod(0), pod(1)], None, 90)
    assert created_places(after) == [(None, 2)]
    assert after.status.condition("CoordinatorFails") is None


def test_coordinator_that_lives_or_waits_for_something_else_is_no_longer_told_to_fail() -> None:
    ill = begun()
    ill = then(ill, plan(ill, [dead_coordinator(1, 0), pod(0), pod(1)], None, 1))
    for phase in ("Running", "Pending"):
        pods = [pod(None, 2, phase=phase, created=at(2)), pod(0), pod(1)]
        for second, value in ((61, "True"), (62, "False")):
            status = plan(ill, pods, None, second).status
            condition = status.condition("CoordinatorFails")
            assert condition is not None
            assert condition.status == value
        assert plan(ill, pods, None, 1_000).status.phase == "Starting"


def test_pod_that_its_node_turns_away_waits_longer_each_time_uncounted_and_says_why() -> None:
    def pods(attempt: int, second: float) -> list[Pod]:
        return [pod(None), pod(0), rejected(attempt, second)]

    created, plans = history(begun(max_restarts=0), pods, 300)
    pauses = [later - earlier for earlier, later in pairwise(created)]
    assert pauses == sorted(pauses)
    assert 5 <= len(created) <= 12
    status = plans[-1].status
    assert (status.phase, status.reason, status.restarts.total) == ("Pending", "Rejected", 0)
    assert "OutOfnvidia.com/gpu" in status.message


def test_pod_that_is_drained_after_a_while_is_replaced_at_once() -> None:
    drained = pod(1, phase="Failed", disrupted=True, created=at(0))
    after = plan(running(), [pod(None), pod(0), drained], report(), 90)
    assert created_places(after) == [(1, 2)]


def test_resumed_run_begins_afresh() -> None:
    ill = begun()
    ill = then(ill, plan(ill, [dead_coordinator(1, 0), pod(0), pod(1)], None, 1))
    off = ill.model_copy(update={"spec": ill.spec.model_copy(update={"suspend": True})})
    off = then(off, plan(off, [], None, 2))
    assert off.status.phase == "Suspended"
    again = off.model_copy(update={"spec": ill.spec})
    status = plan(again, [], None, 500).status
    condition = status.condition("CoordinatorFails")
    assert condition is not None
    assert condition.status == "False"
