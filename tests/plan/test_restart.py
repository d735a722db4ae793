from dataclasses import replace

import pytest

from everstep_operator.plan.model import DeletePod
from everstep_protocol import codec
from everstep_protocol.messages import Intent, Member, RunState, StopCause, Workers
from everstep_protocol.reasons import Reason
from tests.plan.builders import (
    all_pods,
    at,
    created,
    created_places,
    dead,
    deleted,
    failure,
    intent,
    plan,
    pod,
    progress,
    report,
    running,
    then,
    told,
)

RESTARTING = RunState.RESTARTING


def test_failure_in_the_report_is_counted_once() -> None:
    said = report(RESTARTING, restarts=1, failures=(failure(1, Reason.OUT_OF_MEMORY, step=41),))
    once = plan(running(), all_pods(), said, 7)
    assert (once.status.phase, once.status.reason) == ("Restarting", "OutOfMemory")
    assert once.status.restarts.total == 1
    assert once.status.restarts.by_cause == {"OutOfMemory": 1}
    (attempt,) = once.status.attempts
    assert (attempt.generation, attempt.step, attempt.rank, attempt.signal, attempt.time) == (1, 41, 1, 9, at(7))
    again = plan(then(running(), once), all_pods(), said, 8)
    assert again.status == once.status


def test_a_failure_that_is_not_explained_yet_is_no_disruption() -> None:
    seen = plan(running(), all_pods(), report(RESTARTING))
    assert (seen.status.phase, seen.status.reason, seen.status.restarts.total) == ("Restarting", "RankFailed", 0)
    known = plan(then(running(), seen), all_pods(), report(RESTARTING, failures=(failure(1),)))
    assert (known.status.reason, known.status.restarts.total) == ("Killed", 1)


def test_a_failure_of_a_run_that_stops_is_followed_by_no_restart() -> None:
    stopped = report(RunState.STOPPED, failures=(failure(1, Reason.STORAGE),), intent=intent(stop=StopCause.INTERRUPT))
    after = plan(running(), all_pods(), stopped)
    assert after.status.restarts.total == 0
    assert [attempt.reason for attempt in after.status.attempts] == ["Storage"]
    assert plan(then(running(), after), all_pods(), stopped).status.attempts == after.status.attempts


def test_pod_and_report_tell_of_one_failure() -> None:
    words = failure(1, Reason.OUT_OF_MEMORY)
    by_pod = plan(running(), [pod(None), pod(0), dead(1, failure=words)], report())
    assert by_pod.status.restarts.total == 1
    by_report = plan(then(running(), by_pod), all_pods(), report(RESTARTING, restarts=1, failures=(words,)))
    assert by_report.status.restarts.total == 1


def test_report_and_then_a_pod_without_last_words_are_one_failure() -> None:
    by_report = plan(running(), all_pods(), report(RESTARTING, failures=(failure(1, Reason.NODE_LOST),)))
    by_pod = plan(then(running(), by_report), [pod(None), pod(0), dead(1, exit_code=137)], report(RESTARTING))
    assert by_pod.status.restarts.total == 1
    assert created_places(by_pod) == [(1, 2)]


def test_pod_without_last_words_says_what_is_known() -> None:
    killed = dead(1, exit_code=137, last_lines=("loading", "step 7"))
    (attempt,) = plan(running(), [pod(None), pod(0), killed], report()).status.attempts
    assert (attempt.reason, attempt.signal, attempt.node) == ("Killed", 9, 1)
    assert "run-1-1" in attempt.message
    assert (attempt.rank, attempt.last_lines) == (1, ("loading", "step 7"))


def test_last_lines_are_those_of_the_rank_and_the_end_of_its_traceback() -> None:
    words = replace(failure(1), last_lines=tuple(f"line {i}" for i in range(10)), traceback="Traceback\nValueError: no")
    (attempt,) = plan(running(), all_pods(), report(RESTARTING, failures=(words,))).status.attempts
    assert attempt.last_lines == (*(f"line {i}" for i in range(2, 10)), "Traceback", "ValueError: no")


def test_failures_between_two_looks_are_all_counted() -> None:
    said = report(generation=4, restarts=3, failures=tuple(failure(g) for g in (1, 2, 3)))
    status = plan(running(), all_pods(), said).status
    assert status.restarts.total == 3
    assert [attempt.generation for attempt in status.attempts] == [1, 2, 3]


def test_only_the_last_ten_are_kept() -> None:
    run = running(max_restarts=50)
    for generation in range(1, 15):
        run = then(run, plan(run, all_pods(), report(RESTARTING, generation, failures=(failure(generation),))))
    assert run.status.restarts.total == 14
    assert [attempt.generation for attempt in run.status.attempts] == list(range(5, 15))


def test_last_failure_of_a_failed_run_is_no_restart() -> None:
    said = report(RunState.FAILED, 2, failures=(failure(1), failure(2)), message="gave up after 2")
    status = plan(running(), all_pods(), said).status
    assert (status.phase, status.reason) == ("Failed", "Killed")
    assert status.message == "gave up after 2 (node 1, rank 1, signal 9)"
    assert status.restarts.total == 1
    assert len(status.attempts) == 2


def test_budget_ends_the_run_also_without_a_coordinator() -> None:
    run = running(max_restarts=0, cleanPodPolicy="All")
    over = plan(run, [dead(None), pod(0), dead(1)])
    assert (over.status.phase, over.status.reason) == ("Failed", "MaxRestartsExceeded")
    assert "failurePolicy.maxRestarts 0" in over.status.message
    assert over.status.restarts.total == 0
    assert created(over) == []
    assert set(deleted(over)) == {"run-coordinator-1", "run-0-1", "run-1-1"}


def test_pods_that_die_before_any_round_spend_the_budget_too() -> None:
    run = running(max_restarts=2)
    run = then(run, plan(run, all_pods(), report(RESTARTING, failures=(failure(1),))))  # generation 1 is counted
    phases = []
    for attempt in range(2, 6):
        deaths = [pod(None), dead(0, attempt, exit_code=2), dead(1, attempt, exit_code=2)]
        run = then(run, plan(run, deaths, report(RunState.WAITING), 1_000 * attempt))
        phases.append((str(run.status.phase), run.status.restarts.total))
    assert phases[:2] == [("Restarting", 2), ("Failed", 2)]


@pytest.mark.parametrize("reason", [Reason.COMMAND_NOT_FOUND, Reason.CONFIGURATION])
def test_what_no_restart_can_help_ends_the_run(reason: Reason) -> None:
    words = failure(0, reason, message="no such file: trian.py")
    over = plan(running(), [dead(None), dead(0, failure=words), pod(1)])
    assert (over.status.phase, over.status.reason) == ("Failed", reason)
    assert "trian.py" in over.status.message
    assert over.status.restarts.total == 0, "nothing was restarted"
    assert [attempt.reason for attempt in over.status.attempts] == [reason]


@pytest.mark.parametrize(
    "gone",
    [
        {"phase": "Failed", "exit_code": 85},
        {"phase": "Failed", "exit_code": 143},
        {"phase": "Failed", "exit_code": 137, "disrupted": True},
    ],
)
def test_pods_that_had_to_leave_are_replaced_and_not_counted(gone: dict[str, object]) -> None:
    after = plan(running(), [pod(None), pod(0), pod(1, **gone)], report())  # type: ignore[arg-type]
    assert created_places(after) == [(1, 2)]
    assert after.status.restarts.total == 0
    assert (after.status.phase, after.status.reason) == ("Restarting", "Disrupted")


def test_run_that_stopped_because_a_pod_had_to_leave_starts_again_as_a_whole() -> None:
    left = [pod(None), dead(0, exit_code=85), dead(1, exit_code=143)]
    away = plan(running(), left, report(RunState.STOPPED))
    assert set(deleted(away)) == {"run-coordinator-1", "run-0-1", "run-1-1"}
    assert created(away) == [], "the old coordinator would send new workers away"
    assert (away.status.phase, away.status.restarts.total) == ("Restarting", 0)
    fresh = plan(then(running(), away), [])
    assert created_places(fresh) == [(None, 2), (0, 2), (1, 2)]


def test_a_launcher_that_came_too_late_for_the_stop_is_not_waited_for() -> None:
    """It may not hear a SIGTERM yet, and would use up the whole grace; the one that has saved leaves in peace."""
    members = (Member(0, "agent", "run-0-1", "10.0.0.1", Workers.STOPPED, 1, (), 0.1),)
    away = plan(running(), [pod(None), pod(0), pod(1, 2)], report(RunState.STOPPED, members=members))
    graces = {action.name: action.grace_seconds for action in away.actions if isinstance(action, DeletePod)}
    assert graces == {"run-coordinator-1": None, "run-0-1": None, "run-1-2": 2.0}


# --- waits ----------------------------------------------------------------------------------------------------------


def test_first_replacement_is_immediate_the_next_without_progress_waits() -> None:
    run = running(failurePolicy={"maxRestarts": 9, "backoff": {"initialSeconds": 10, "factor": 2}})
    first = plan(run, [pod(None), pod(0), dead(1, failure=failure(1, step=10))], report())
    assert created_places(first) == [(1, 2)]
    deaths = [pod(None), pod(0), dead(1, 2, failure=failure(2, step=10))]
    second = plan(then(run, first), deaths, report(generation=2))
    assert created(second) == []
    assert created(plan(then(run, second), deaths, report(generation=2), 7)) == []
    nearly = plan(then(run, second), deaths, report(generation=2), 7.5).wake_after
    assert nearly is not None
    assert 0 < nearly <= 4.5
    assert created_places(plan(then(run, second), deaths, report(generation=2), 13)) == [(1, 3)]


def test_progress_ends_the_waits() -> None:
    run = running(failurePolicy={"maxRestarts": 9, "backoff": {"initialSeconds": 10, "factor": 2}})
    first = plan(run, [pod(None), pod(0), dead(1, failure=failure(1, step=10))], report())
    deaths = [pod(None), pod(0), dead(1, 2, failure=failure(2, step=50))]
    assert created_places(plan(then(run, first), deaths, report(generation=2))) == [(1, 3)]


# --- the intent -----------------------------------------------------------------------------------------------------


def test_intent_is_sent_when_the_budget_changes_and_only_then() -> None:
    before = running(max_restarts=3)
    assert told(plan(before, all_pods(), report())) == []
    raised = before.model_copy(update={"spec": running(max_restarts=8).spec})
    counted = intent(restarts_used=2, first_generation=5)
    (sent,) = told(plan(raised, all_pods(), report(intent=counted)))
    assert sent.max_restarts == 8
    assert (sent.restarts_used, sent.first_generation) == (2, 5), "it has counted on from there"


def test_new_coordinator_learns_what_was_used() -> None:
    counted = plan(running(), all_pods(), report(RESTARTING, 3, failures=(failure(1), failure(3))))
    after = plan(then(running(), counted), [dead(None), pod(0), pod(1)])
    said = codec.loads(Intent, created(after)[0].command[3])
    assert (said.restarts_used, said.first_generation) == (2, 4)


def test_restart_goes_on_to_running() -> None:
    run = running()
    run = then(run, plan(run, all_pods(), report(RESTARTING, failures=(failure(1),))))
    run = then(run, plan(run, all_pods(), report(RunState.STARTING, 2, failures=(failure(1),))))
    assert (run.status.phase, run.status.reason) == ("Restarting", "Killed")
    run = then(run, plan(run, all_pods(), report(RunState.RUNNING, 2, failures=(failure(1),), progress=progress(9))))
    assert (run.status.phase, run.status.reason, run.status.generation) == ("Running", "Training", 2)


def test_rank_of_a_pod_with_several_is_not_guessed() -> None:
    (attempt,) = plan(running(numProcPerNode=2), [pod(None), pod(0), dead(1)], report()).status.attempts
    assert (attempt.node, attempt.rank) == (1, None)
