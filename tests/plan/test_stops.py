"""Suspend, deadline, interrupt, and the end."""

from dataclasses import replace

import pytest

from everstep_operator.plan.model import DeleteRun, Plan
from everstep_protocol import codec
from everstep_protocol.messages import Goodput, Intent, RunState, StopCause
from everstep_protocol.reasons import Reason
from tests.plan.builders import (
    all_pods,
    at,
    checkpoint,
    created,
    created_places,
    dead,
    deleted,
    done,
    failure,
    intent,
    plan,
    pod,
    progress,
    report,
    run,
    running,
    then,
    told,
)

ALL = {"run-coordinator-1", "run-0-1", "run-1-1"}
STOPPED = [pod(None), dead(0, exit_code=85), dead(1, exit_code=85)]
SUSPEND = intent(stop=StopCause.SUSPEND)


def suspended(run_, value=True):  # type: ignore[no-untyped-def]
    return run_.model_copy(update={"spec": run_.spec.model_copy(update={"suspend": value})})


# --- suspend --------------------------------------------------------------------------------------------------------


def test_suspend_asks_waits_and_then_takes_the_pods_away() -> None:
    run = suspended(running())
    asked = plan(run, all_pods(), report(), 100)
    assert [sent.stop for sent in told(asked)] == [StopCause.SUSPEND]
    assert deleted(asked) == []
    assert (asked.status.phase, asked.status.reason) == ("Running", "Suspending")

    run = then(run, asked)
    waiting = plan(run, all_pods(), report(RunState.STOPPING, intent=SUSPEND), 101)
    assert waiting.actions == ()

    saved = plan(run, STOPPED, report(RunState.STOPPED, intent=SUSPEND), 102)
    assert set(deleted(saved)) == ALL
    assert created(saved) == []
    assert saved.status.phase == "Suspended"
    assert saved.status.restarts.total == 0
    gone = plan(then(run, saved), [], None, 103)
    assert (gone.status.phase, gone.actions, gone.wake_after) == ("Suspended", (), None)


def test_resume_starts_with_a_later_generation_and_new_pods() -> None:
    run = suspended(running())
    for pods, said in ((all_pods(), report(generation=4)), (STOPPED, report(RunState.STOPPED, 4, intent=SUSPEND))):
        run = then(run, plan(run, pods, said))
    run = suspended(run, False)
    assert created(plan(run, [pod(None, terminating=True)])) == [], "those of the time before go first"
    resumed = plan(run, [], None, 500)
    assert resumed.status.phase == "Pending"
    assert resumed.status.start_time == at(500), "the deadline counts from here"
    assert created_places(resumed) == [(None, 2), (0, 2), (1, 2)]
    assert codec.loads(Intent, created(resumed)[0].command[3]).first_generation == 5
    condition = resumed.status.condition("Suspended")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "Resumed")


def test_resumed_run_goes_on_counting_where_its_time_goes() -> None:
    spent = Goodput(wall=100, productive=60, waiting=5, startup=15, lost={"Killed": 20})
    run = suspended(running())
    run = then(run, plan(run, STOPPED, report(RunState.STOPPED, intent=SUSPEND, goodput=spent)))
    run = suspended(run, False)
    resumed = plan(run, [])
    first = codec.loads(Intent, created(resumed)[0].command[3])
    assert first.goodput == spent
    more = replace(spent, wall=130, productive=90)
    later = plan(then(run, resumed), all_pods(attempt=2), report(goodput=more, intent=first), 500)
    assert later.status.goodput is not None
    assert later.status.goodput.ratio == 0.6923
    assert told(later) == [], "it knows what was before"


def test_run_that_begins_suspended_has_no_pods() -> None:
    first = plan(run(suspend=True))
    assert (first.status.phase, first.actions, first.wake_after) == ("Suspended", (), None)


def test_suspend_taken_back_on_the_way_is_carried_through() -> None:
    run = suspended(running())
    run = suspended(then(run, plan(run, all_pods(), report())), False)
    assert plan(run, all_pods(), report(RunState.STOPPING, intent=SUSPEND)).actions == ()
    saved = plan(run, STOPPED, report(RunState.STOPPED, intent=SUSPEND))
    assert saved.status.phase == "Suspended"
    assert created_places(plan(then(run, saved), [])) == [(None, 2), (0, 2), (1, 2)]


def test_suspend_without_a_coordinator_makes_one_first() -> None:
    asked = plan(suspended(running()), [dead(None), pod(0), pod(1)])
    assert created_places(asked) == [(None, 2)]
    assert codec.loads(Intent, created(asked)[0].command[3]).stop is StopCause.SUSPEND


def test_suspend_before_anything_runs_stops_at_once() -> None:
    new = then(run(), plan(run()))
    stopped = plan(suspended(new), all_pods(phase="Pending"))
    assert set(deleted(stopped)) == ALL
    assert stopped.status.phase == "Suspended"


def test_stop_that_is_never_reached_ends_with_sigterm() -> None:
    run = suspended(running())
    run = then(run, plan(run, all_pods(), report()))
    stuck = report(RunState.STOPPING, intent=SUSPEND)
    waiting = plan(run, all_pods(), stuck, 329)
    assert (waiting.actions, waiting.wake_after) == ((), 1)
    assert set(deleted(plan(run, all_pods(), stuck, 330))) == ALL


def test_save_that_takes_its_grace_is_waited_for_whatever_stops_the_run() -> None:
    slow = {"trainer": {"terminationGracePeriodSeconds": 3_600}}
    stuck = report(RunState.STOPPING, intent=SUSPEND)
    run = suspended(running(**slow))
    run = then(run, plan(run, all_pods(), report()))
    assert plan(run, all_pods(), stuck, 3_899).actions == ()
    assert set(deleted(plan(run, all_pods(), stuck, 3_900))) == ALL
    ended = running(activeDeadlineSeconds=60, **slow)
    assert plan(ended, all_pods(), report(), 3_959).status.phase == "Running"
    assert plan(ended, all_pods(), report(), 3_960).status.phase == "Failed"


def test_dead_workers_are_not_replaced_while_stopping() -> None:
    run = suspended(running())
    run = then(run, plan(run, all_pods(), report()))
    stopping = plan(run, [pod(None), pod(0), dead(1)], report(RunState.STOPPING, intent=SUSPEND))
    assert stopping.actions == ()
    assert stopping.status.restarts.total == 0
    assert stopping.status.phase == "Restarting", "fewer than minNodes are left"


# --- deadline -------------------------------------------------------------------------------------------------------


def test_deadline_saves_and_fails() -> None:
    run = running(activeDeadlineSeconds=60, cleanPodPolicy="All")
    assert plan(run, all_pods(), report(), 58).wake_after == 2
    asked = plan(run, all_pods(), report(), 60)
    assert [sent.stop for sent in told(asked)] == [StopCause.DEADLINE]
    assert (asked.status.phase, deleted(asked)) == ("Running", [])
    said = report(RunState.STOPPED, intent=intent(stop=StopCause.DEADLINE), last_checkpoint=checkpoint(70))
    over = plan(then(run, asked), STOPPED, said, 61)
    assert (over.status.phase, over.status.reason) == ("Failed", "DeadlineExceeded")
    assert "activeDeadlineSeconds 60" in over.status.message
    assert "step 70" in over.status.message
    assert set(deleted(over)) == ALL
    failed = over.status.condition("Failed")
    assert failed is not None
    assert failed.reason == "DeadlineExceeded"


def test_deadline_with_a_run_that_does_not_stop() -> None:
    run = running(activeDeadlineSeconds=60)
    assert plan(run, all_pods(), report(), 389).status.phase == "Running"
    assert plan(run, all_pods(), report(), 390).status.phase == "Failed"


def test_deadline_with_nothing_running_fails_at_once() -> None:
    new = run(activeDeadlineSeconds=60)
    new = then(new, plan(new))
    assert plan(new, all_pods(phase="Pending"), None, 61).status.reason == "DeadlineExceeded"


# --- interrupt ------------------------------------------------------------------------------------------------------


def test_interrupt_is_not_undone() -> None:
    said = intent(stop=StopCause.INTERRUPT)
    for state, pods in ((RunState.STOPPING, all_pods()), (RunState.STOPPED, STOPPED)):
        after = plan(suspended(running()), pods, report(state, intent=said))
        assert after.actions == ()
        assert after.status.reason == "Interrupted"
        assert after.status.restarts.total == 0


def test_after_an_interrupt_the_run_goes_on_from_the_next_generation() -> None:
    run = running()
    run = then(run, plan(run, STOPPED, report(RunState.STOPPED, intent=intent(stop=StopCause.INTERRUPT))))
    again = plan(run, [])
    assert len(created(again)) == 3
    assert codec.loads(Intent, created(again)[0].command[3]).first_generation == 2
    assert again.status.phase == "Restarting"
    assert again.status.restarts.total == 0


# --- the end --------------------------------------------------------------------------------------------------------


def test_success_by_report_lets_the_launchers_leave() -> None:
    before = running(cleanPodPolicy="All")
    over = plan(before, all_pods(), report(RunState.SUCCEEDED, progress=progress(100)), 5)
    assert (over.status.phase, over.status.reason) == ("Succeeded", "Completed")
    assert over.status.completion_time == at(5)
    assert over.actions == ()
    assert over.wake_after == 10
    run = then(before, over)
    assert plan(run, all_pods(), None, 6).actions == (), "nor does a coordinator that is slow to answer hurry them"
    left = plan(run, [pod(None), done(0), done(1)], report(RunState.SUCCEEDED), 6)
    assert set(deleted(left)) == ALL
    assert plan(run, [], None, 7).wake_after is None
    assert set(deleted(plan(run, all_pods(), report(RunState.SUCCEEDED), 16))) == ALL, "patience has an end"


def test_success_by_exit_statuses() -> None:
    assert plan(running(), [dead(None), done(0), done(1)]).status.phase == "Succeeded"
    half = plan(running(), [dead(None), done(0), pod(1)])
    assert not half.status.phase.over  # type: ignore[union-attr]
    assert created_places(half) == [(None, 2)]


def test_success_without_any_progress_says_so() -> None:
    new = then(run(), plan(run()))
    status = plan(new, all_pods(), report(RunState.SUCCEEDED)).status
    assert status.phase == "Succeeded"
    condition = status.condition("ProgressReported")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "NothingReported")
    assert "Trainer.fit" in condition.message
    assert status.message == f"every rank exited 0; {condition.message}", "nobody looks for a condition of a success"


def test_success_with_progress_says_so_too() -> None:
    status = plan(running(), all_pods(), report(RunState.SUCCEEDED)).status
    assert status.message == "every rank exited 0"
    conditions = {c.type: c.status for c in status.conditions}
    assert conditions == {"Complete": "True", "PodsRunning": "True", "ProgressReported": "True"}


def test_failed_by_report() -> None:
    said = report(RunState.FAILED, failures=(failure(1, Reason.USER_EXCEPTION),), message="gave up: ValueError")
    run = running(cleanPodPolicy="All")
    over = plan(run, all_pods(), said)
    assert (over.status.phase, over.status.reason) == ("Failed", "UserException")
    assert over.status.message == "gave up: ValueError (node 1, rank 1, signal 9)"
    assert over.actions == (), "the launchers print the traceback and leave"
    left = plan(then(run, over), [pod(None), dead(0), dead(1)], said)
    assert set(deleted(left)) == ALL


def test_run_that_is_over_stays_over() -> None:
    over = then(running(), plan(running(), all_pods(), report(RunState.SUCCEEDED)))
    assert plan(over, [], None).status.phase == "Succeeded"
    assert plan(suspended(over), all_pods(), report(RunState.RUNNING), 99).status.phase == "Succeeded"


# --- what is left, and for how long -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "gone"),
    [("All", ALL), ("Running", {"run-coordinator-1", "run-1-1"}), ("None", set())],
)
def test_clean_pod_policy(policy: str, gone: set[str]) -> None:
    before = running(cleanPodPolicy=policy)
    over = then(before, plan(before, all_pods(), report(RunState.SUCCEEDED)))
    left = plan(over, [pod(None), done(0), pod(1)], report(RunState.SUCCEEDED), 60)
    assert set(deleted(left)) == gone
    assert (left.wake_after is None) == (policy == "None")


def test_sidecars_that_never_end_are_no_reason_to_keep_a_pod() -> None:
    over = then(running(), plan(running(), all_pods(), report(RunState.SUCCEEDED)))
    left = plan(over, [replace(done(0), sidecars_run=True), done(1)], None, 60)
    assert deleted(left) == ["run-0-1"]
    assert plan(over, [done(0), done(1)], None, 60).actions == ()


def test_time_to_live_ends_with_the_object() -> None:
    before = running(ttlSecondsAfterFinished=100)
    over = then(before, plan(before, all_pods(), report(RunState.SUCCEEDED), 50))
    kept = plan(over, [done(0), done(1)], None, 149)
    assert (kept.actions, kept.wake_after) == ((), 1)
    assert plan(over, [done(0), done(1)], None, 150).actions == (DeleteRun(over.metadata.uid),)
    longer = over.model_copy(update={"spec": over.spec.model_copy(update={"ttl_seconds_after_finished": 200})})
    assert plan(longer, [], None, 150).actions == (), "it may be changed at any time"


def test_run_of_another_manager_is_left_alone() -> None:
    theirs = run(managedBy="kueue.x-k8s.io/multikueue")
    assert plan(theirs) == Plan(theirs.status)
    ours = run(managedBy="everstep.dev/operator")
    assert len(created(plan(ours))) == 3
