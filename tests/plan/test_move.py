"""Another number of nodes: saved first, then all start again. Nodes that are drained: their pods leave. Not counted."""

from dataclasses import replace

from everstep_operator.api.trainingrun import TrainingRun
from everstep_protocol import codec
from everstep_protocol.messages import Intent, RunState, StopCause
from tests.plan.builders import (
    all_pods,
    at,
    created,
    created_places,
    dead,
    deleted,
    intent,
    plan,
    pod,
    report,
    running,
    then,
    told,
)

SCALE = intent(stop=StopCause.SCALE)


def elastic() -> TrainingRun:
    return running(2, elasticPolicy={"minNodes": 1, "maxNodes": 4})


def scaled(run: TrainingRun, nodes: int) -> TrainingRun:
    return run.model_copy(update={"spec": run.spec.model_copy(update={"num_nodes": nodes})})


def test_scaling_up_saves_first_and_then_starts_with_more_nodes() -> None:
    run = scaled(elastic(), 3)
    asked = plan(run, all_pods(), report(), 100)
    assert [(sent.stop, sent.nodes) for sent in told(asked)] == [(StopCause.SCALE, 3)]
    assert created(asked) == []
    assert deleted(asked) == []
    assert (asked.status.phase, asked.status.reason, asked.status.nodes.desired) == ("Running", "Scaling", 3)
    run = then(run, asked)
    stopping = report(RunState.STOPPING, intent=intent(3, min_nodes=1, stop=StopCause.SCALE))
    assert plan(run, all_pods(), stopping, 101).actions == ()

    saved = [pod(None), dead(0, exit_code=85), dead(1, exit_code=85)]
    left = plan(run, saved, report(RunState.STOPPED, intent=stopping.intent), 102)
    assert len(deleted(left)) == 3
    assert (left.status.phase, left.status.reason) == ("Restarting", "Scaled")
    assert left.status.restarts.total == 0
    again = plan(then(run, left), [], None, 103)
    assert created_places(again) == [(None, 2), (0, 2), (1, 2), (2, 2)]
    first = codec.loads(Intent, created(again)[0].command[3])
    assert (first.nodes, first.stop) == (3, None)


def test_scaling_down_leaves_no_pod_of_a_node_that_is_no_more() -> None:
    run = scaled(elastic(), 1)
    asked = plan(run, all_pods(), report(), 100)
    assert deleted(asked) == [], "a pod that trains saves first"
    saved = [pod(None), dead(0, exit_code=85), dead(1, exit_code=85)]
    left = plan(then(run, asked), saved, report(RunState.STOPPED, intent=SCALE), 102)
    assert created_places(plan(then(run, left), [], None, 103)) == [(None, 2), (0, 2)]


def test_scaling_where_nothing_trains_just_adds_and_removes_pods() -> None:
    waiting = report(RunState.WAITING, 0, intent=intent(2, min_nodes=1))
    more = plan(scaled(elastic(), 3), all_pods(), waiting)
    assert created_places(more) == [(2, 1)]
    assert [(sent.nodes, sent.stop) for sent in told(more)] == [(3, None)]
    fewer = plan(scaled(elastic(), 1), all_pods(), waiting)
    assert deleted(fewer) == ["run-1-1"]


def test_scaling_without_a_coordinator_makes_one_that_knows() -> None:
    run = scaled(elastic(), 3)
    asked = plan(run, [dead(None), pod(0), pod(1)])
    assert created_places(asked) == [(None, 2)]
    assert codec.loads(Intent, created(asked)[0].command[3]).stop is StopCause.SCALE


def test_move_that_is_never_reached_ends_with_sigterm() -> None:
    run = scaled(elastic(), 3)
    run = then(run, plan(run, all_pods(), report(), 100))
    stuck = report(RunState.STOPPING, intent=intent(3, min_nodes=1, stop=StopCause.SCALE))
    assert deleted(plan(run, all_pods(), stuck, 429)) == []
    late = plan(run, all_pods(), stuck, 430)
    assert len(deleted(late)) == 3
    assert late.status.phase == "Restarting"


def test_a_pod_that_is_evicted_saves_and_is_replaced_and_not_counted() -> None:
    """A drain: first it terminates, then it is gone, and no other is touched."""
    evicted = pod(1, disrupted=True)
    saving = report(RunState.STOPPING, stop=StopCause.PREEMPTION)
    going = plan(running(), [pod(None), pod(0), replace(evicted, terminating=True, gone_by=at(80))], saving, 50)
    assert going.actions == ()
    gone = [pod(None), pod(0), replace(evicted, phase="Failed", exit_code=143)]
    left = plan(then(running(), going), gone, report(RunState.WAITING), 55)
    assert (created_places(left), left.status.restarts.total) == ([(1, 2)], 0)


def test_pod_that_had_to_leave_is_the_only_one_that_is_replaced() -> None:
    """The coordinator has told the others to wait for its successor."""
    waits = report(RunState.WAITING, message="stopped (Preemption) at the agreed step 41; waiting for node 1")
    left = plan(running(), [pod(None), pod(0), dead(1, exit_code=143)], waits, 20)
    assert (created_places(left), deleted(left)) == ([(1, 2)], ["run-1-1"])
    assert (left.status.phase, left.status.reason, left.status.restarts.total) == ("Restarting", "Disrupted", 0)
    assert "step 41" in left.status.message


def test_intent_that_an_older_coordinator_does_not_know_is_not_sent_for_ever() -> None:
    assert plan(running(), all_pods(), report(intent=intent(replaces=False))).actions == ()
    (first,) = told(plan(running(), all_pods(), report(intent=None)))
    assert first.replaces


def test_suspend_during_a_move_wins() -> None:
    run = scaled(elastic(), 3)
    run = then(run, plan(run, all_pods(), report(), 100))
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"suspend": True})})
    said = report(RunState.STOPPED, intent=SCALE)
    after = plan(run, [pod(None), dead(0, exit_code=85), dead(1, exit_code=85)], said, 110)
    assert after.status.phase == "Suspended"
    moving = after.status.condition("Moving")
    assert moving is not None
    assert moving.status == "False"
