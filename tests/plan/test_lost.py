"""Nodes that do not answer: whose pods are forgotten, when, and where the replacement goes."""

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.plan.lost import UNHEARD_SECONDS
from everstep_operator.plan.model import CreatePod, DeletePod, Pod
from everstep_protocol import labels
from everstep_protocol.messages import LOST_SECONDS, Member, Report, RunState, Workers
from everstep_protocol.reasons import Reason
from tests.coordinator.world import World as Coordinated
from tests.coordinator.world import intent as coordinator_intent
from tests.plan.builders import (
    UID,
    all_pods,
    at,
    created,
    created_places,
    deleted,
    done,
    failure,
    intent,
    plan,
    pod,
    report,
    run,
    running,
    then,
)


def member(node: int, silent: float = 0.5) -> Member:
    return Member(node, f"agent-{node}", f"run-{node}-1", "", Workers.RUNNING, 1, (), silent)


def heard(*nodes: int, state: RunState = RunState.RESTARTING, **fields: object) -> Report:
    return report(state, members=tuple(map(member, nodes)), **fields)


def forgotten(actions: tuple[object, ...]) -> list[str]:
    return [a.name for a in actions if isinstance(a, DeletePod) and a.grace_seconds == 0]


def on(machine: str, node: int | None, **fields: object) -> Pod:
    return pod(node, machine=machine, **fields)


def test_pod_on_a_node_that_is_not_ready_is_forgotten_after_the_grace_and_replaced_elsewhere() -> None:
    pods = [pod(None), on("good", 0), on("bad", 1, machine_lost_since=at(100))]
    early = plan(running(), pods, heard(0), 109.9)
    assert (forgotten(early.actions), created(early)) == ([], [])
    assert early.wake_after == pytest.approx(0.1)
    late = plan(running(), pods, heard(0), 110)
    assert forgotten(late.actions) == ["run-1-1"]
    (replacement,) = created(late)
    assert (replacement.node, replacement.attempt, replacement.excluded_nodes) == (1, 2, ("bad",))
    kinds = [type(action) for action in late.actions]
    assert kinds == [DeletePod, CreatePod], "the old one is forgotten before there is a new one"
    (node,) = late.status.excluded_nodes
    assert (node.name, node.until) == ("bad", at(110 + 600))
    assert "Ready" in node.reason


def test_pod_that_found_no_place_is_made_anew_when_a_node_may_be_used_again() -> None:
    """Its affinity is written once; else it would wait for ever for another node."""
    pods = [pod(None), on("good", 0), on("bad", 1, machine_lost_since=at(100))]
    lost = plan(running(), pods, heard(0), 110)
    waiting = [pod(None), on("good", 0), pod(1, 2, phase="Pending", kept_from=("bad",))]
    before = plan(then(running(), lost), waiting, heard(0), 110 + 599)
    assert before.actions == ()
    after = plan(then(running(), before), waiting, heard(0), 110 + 601)
    assert forgotten(after.actions) == ["run-1-2"]
    (anew,) = created(after)
    assert (anew.node, anew.attempt, anew.excluded_nodes) == (1, 3, ())
    assert after.status.excluded_nodes == ()
    placed = [pod(None), on("good", 0), on("other", 1, attempt=2, phase="Pending", kept_from=("bad",))]
    assert plan(then(running(), before), placed, heard(0), 110 + 601).actions == ()


def test_replacement_of_a_lost_node_is_not_taken_for_the_launcher_that_was_lost() -> None:
    """Kubernetes and the coordinator notice the death of a node one after the other, in either order."""
    pods = [pod(None), on("good", 0), on("bad", 1, machine_lost_since=at(100), created=at(0))]
    replaced = then(running(), plan(running(), pods, heard(0), 110))
    fresh = [pod(None), on("good", 0), on("other", 1, attempt=2, created=at(110))]
    said = heard(0, failures=(failure(1, Reason.NODE_LOST),))
    for seconds in (111, 118, 130):
        after = plan(replaced, fresh, said, seconds)
        assert deleted(after) == []
        assert after.status.restarts.total == 1
        replaced = then(replaced, after)


def test_pod_that_never_ends_is_forgotten_once_it_is_overdue() -> None:
    """Of a dead node: deleted by somebody, and nobody confirms its end."""
    pods = [pod(None), on("good", 0), on("bad", 1, terminating=True, gone_by=at(50))]
    assert plan(running(), pods, heard(0), 59).actions == ()
    late = plan(running(), pods, heard(0), 60)
    assert forgotten(late.actions) == ["run-1-1"]
    assert created_places(late) == [(1, 2)]


def test_grace_and_exclusion_are_those_of_the_manifest() -> None:
    policy = {"maxRestarts": 3, "node": {"graceSeconds": 60, "excludeSeconds": 0}}
    run = running(failurePolicy=policy)
    pods = [pod(None), on("good", 0), on("bad", 1, machine_lost_since=at(100))]
    assert plan(run, pods, heard(0), 159).actions == ()
    late = plan(run, pods, heard(0), 160)
    assert forgotten(late.actions) == ["run-1-1"]
    assert late.status.excluded_nodes == ()


def test_excluded_nodes_come_back_after_a_while() -> None:
    run = running()
    run = then(run, plan(run, [pod(None), pod(0), on("bad", 1, machine_lost_since=at(0))], heard(0), 10))
    assert [node.name for node in run.status.excluded_nodes] == ["bad"]
    assert plan(run, all_pods(), heard(0, 1), 609).status.excluded_nodes != ()
    assert plan(run, all_pods(), heard(0, 1), 610).status.excluded_nodes == ()


def test_training_that_goes_on_is_left_alone_though_the_kubelet_is_away() -> None:
    pods = [pod(None), on("good", 0), on("cut-off", 1, machine_lost_since=at(0))]
    well = plan(running(), pods, heard(0, 1, state=RunState.RUNNING), 500)
    assert well.actions == ()
    assert well.status.phase == "Running"


def test_while_no_coordinator_answers_no_worker_is_forgotten() -> None:
    pods = [pod(None, terminating=True), on("good", 0), on("bad", 1, machine_lost_since=at(0))]
    assert plan(running(), pods, None, 500).actions == ()


@pytest.mark.parametrize("excluded", [False, True])
def test_a_coordinator_that_has_just_begun_does_not_know_yet_who_is_there(excluded: bool) -> None:
    """Whose kubelet alone is away trains on, and tells the new coordinator in a moment."""
    run = running()
    if excluded:  # the old coordinator was on that node
        run = then(run, plan(run, [on("bad", None, machine_lost_since=at(0)), on("good", 0), pod(1)], None, 10))
        assert [node.name for node in run.status.excluded_nodes] == ["bad"]
    pods = [pod(None, attempt=2), on("good", 0), on("bad", 1, machine_lost_since=at(0))]
    assert forgotten(plan(run, pods, heard(0, seconds_up=LOST_SECONDS - 0.1), 20).actions) == []
    assert forgotten(plan(run, pods, heard(0, seconds_up=LOST_SECONDS), 25).actions) == ["run-1-1"]


def test_coordinator_on_a_dead_node_is_replaced() -> None:
    pods = [on("bad", None, machine_lost_since=at(0)), pod(0), pod(1)]
    after = plan(running(), pods, None, 10)
    assert forgotten(after.actions) == ["run-coordinator-1"]
    (replacement,) = created(after)
    assert (replacement.role, replacement.attempt, replacement.excluded_nodes) == (labels.COORDINATOR, 2, ("bad",))
    assert after.status.phase == "Running"


def test_coordinator_that_answers_stays_though_its_node_is_not_ready() -> None:
    """After an outage of the API server all nodes are NotReady until their kubelets are heard again."""
    pods = [on("well", None, machine_lost_since=at(0)), pod(0), pod(1)]
    assert plan(running(), pods, heard(0, 1), 60).actions == ()
    ending = [on("well", None, terminating=True, gone_by=at(0)), pod(0), pod(1)]
    assert forgotten(plan(running(), ending, heard(0, 1), 60).actions) == ["run-coordinator-1"]


def test_launcher_that_the_coordinator_has_lost_is_killed_and_then_replaced() -> None:
    """Long before the cluster calls its node NotReady; and if the node is well, its kubelet confirms the end."""
    lost = heard(0, failures=(failure(1, Reason.NODE_LOST),), restarts=1)
    pods = [pod(None), on("good", 0), on("maybe-bad", 1)]
    killed = plan(running(), pods, lost, 12)
    assert killed.actions == (DeletePod("run-1-1", "uid-of-run-1-1", 1.0),)
    assert killed.status.restarts.total == 1
    run = then(running(), killed)
    going = [pod(None), on("good", 0), on("maybe-bad", 1, terminating=True, gone_by=at(13))]
    assert plan(run, going, lost, 22).actions == ()
    replaced = plan(run, going, lost, 23)
    assert forgotten(replaced.actions) == ["run-1-1"]
    assert created_places(replaced) == [(1, 2)]
    assert created(replaced)[0].excluded_nodes == ("maybe-bad",)
    assert replaced.status.restarts.total == 1, "one loss is one failure"
    fresh = [pod(None), on("good", 0), on("other", 1, attempt=2)]
    assert plan(then(run, replaced), fresh, lost, 30).actions == (), "the replacement is not blamed for the old one"


@pytest.mark.parametrize("later", [0.0, 40.0])
def test_each_launcher_that_hangs_is_killed_and_replaced(later: float) -> None:
    """Both at once, of which one failure names one; and one that hangs, with no seat, while the other is waited for."""
    run, coordinator = running(3), Coordinated(coordinator_intent(3, run_uid=UID), total=10**6, start=False)
    pods = {place: pod(place, created=at(0), machine=f"m{place}") for place in (None, 0, 1, 2)}
    for node in (0, 1, 2):
        coordinator.join(node, pods[node].name)
    begun, comes, killed = coordinator.now, 60.0 + later, []
    for second in range(0, 200, 2):
        coordinator.pass_time(2.0)
        if second == 60:
            coordinator.lose(coordinator.at(1))
        if second == comes:
            coordinator.lose(coordinator.at(2))
        decided = plan(run, list(pods.values()), coordinator.report, coordinator.now - begun)
        run = then(run, decided)
        killed += deleted(decided)
        pods = {node: there for node, there in pods.items() if there.name not in killed}
        pods |= {
            spec.node: pod(spec.node, spec.attempt, name=spec.name, created=at(second), phase="Pending")
            for spec in created(decided)
        }
        for node, there in pods.items():
            if node is not None and there.phase == "Pending" and second > comes + LOST_SECONDS:
                pods[node] = replace(there, phase="Running")
                coordinator.join(node, there.name)
    assert killed == ["run-1-1", "run-2-1"]
    assert (run.status.phase, coordinator.report.lost) == ("Running", ())
    assert len(coordinator.crew) == 3
    assert run.status.restarts.total == 1


@pytest.mark.parametrize(
    ("fields", "killed"),
    [
        ({}, True),
        ({"seconds_up": UNHEARD_SECONDS - 1}, False),  # it had no coordinator to speak to for that long
        ({"state": RunState.SUCCEEDED}, False),
        ({"members": (member(0), member(1))}, False),
    ],
)
def test_a_launcher_that_has_never_spoken_is_killed_once_it_should_have_given_up(
    fields: dict[str, Any], killed: bool
) -> None:
    new = run(2)
    begun = then(new, plan(new))
    said = replace(heard(0, state=RunState.WAITING, generation=0, seconds_up=1_000.0), **fields)
    pods = [pod(None), pod(0, started=at(0)), pod(1, created=at(0), started=at(500))]
    assert plan(begun, pods, said, 500 + UNHEARD_SECONDS - 1).actions == (), "it may be about to speak"
    after = plan(begun, pods, said, 500 + UNHEARD_SECONDS).actions
    assert (DeletePod("run-1-1", "uid-of-run-1-1", 1.0) in after) == killed


def test_a_launcher_that_spoke_again_or_has_a_successor_is_not_lost() -> None:
    coordinator = Coordinated(coordinator_intent(2), total=10**6)
    coordinator.pass_time(2.0)
    for node in (0, 1):
        coordinator.at(node).reachable = False
    coordinator.pass_time(LOST_SECONDS + 1.0)
    assert coordinator.report.lost == ("pod-0", "pod-1")
    coordinator.at(0).reachable = True
    coordinator.join(1, "pod-1-anew")
    coordinator.pass_time(1.0)
    assert coordinator.report.lost == ()


def test_other_pods_of_a_lost_node_go_with_the_first() -> None:
    """Where nobody may look at Nodes, the cluster's verdict would take until the eviction and its grace."""
    run = running(3)
    lost = report(RunState.RESTARTING, failures=(failure(1, Reason.NODE_LOST),), intent=intent(3), members=(member(2),))
    going = [pod(None), on("bad", 0), on("bad", 1, terminating=True, gone_by=at(0)), on("good", 2)]
    first = plan(run, going, lost, 10)
    assert forgotten(first.actions) == ["run-1-1"]
    left = [pod(None), on("bad", 0), on("good", 1, attempt=2), on("good", 2)]
    second = plan(then(run, first), left, lost, 11)
    assert forgotten(second.actions) == ["run-0-1"]
    assert created_places(second) == [(0, 2)]
    vouched = report(RunState.RESTARTING, failures=lost.failures, intent=lost.intent, members=(member(0), member(2)))
    assert plan(then(run, first), left, vouched, 11).actions == ()


def test_launcher_that_came_back_is_not_killed() -> None:
    back = heard(0, 1, failures=(failure(1, Reason.NODE_LOST),), restarts=1)
    assert plan(running(), all_pods(), back, 12).actions == ()


def test_completion_does_not_wait_for_the_pod_of_a_dead_node() -> None:
    zombie = on("dead", 1, terminating=True, gone_by=at(0))
    pods = [pod(None), done(0), zombie, done(1, attempt=2)]
    assert plan(running(), pods, None, 3).status.phase == "Succeeded"


def test_lost_worker_that_was_never_replaced_cannot_succeed() -> None:
    quota = [pod(None), done(0)]
    after = plan(running(), quota, heard(0, state=RunState.WAITING), 3)
    assert after.status.phase != "Succeeded"
    assert created_places(after) == [(1, 2)]


@pytest.mark.parametrize("late", [pod(2, phase="Pending", waiting_reason="Unschedulable"), pod(2), None])
def test_elastic_run_that_is_done_needs_no_coordinator_to_have_succeeded(late: Pod | None) -> None:
    """A node that never took part is not waited for, and a success stays one when nobody is left who could tell it."""
    run = running(3, min=2, max=3)
    over = plan(run, [done(0), done(1), *([late] if late else [])], None, 3)
    assert (over.status.phase, created(over)) == ("Succeeded", [])
    assert plan(run, [done(0), pod(1), pod(2)], None, 3).status.phase != "Succeeded", "one of at least two"
    failed = pod(2, phase="Failed", exit_code=1)
    assert plan(run, [done(0), done(1), failed], None, 3).status.phase != "Succeeded"


def test_what_is_left_of_a_run_that_is_over_is_forgotten_too() -> None:
    over = then(running(), plan(running(), all_pods(), report(RunState.SUCCEEDED)))
    zombie = on("dead", 1, terminating=True, gone_by=at(0), machine_lost_since=at(0))
    assert deleted(plan(over, [zombie], None, 11)) == ["run-1-1"]


def test_machine_is_named_in_the_failure() -> None:
    words = failure(1, Reason.OUT_OF_MEMORY)
    pods = [pod(None), on("gpu-7", 0), on("gpu-8", 1)]
    (attempt,) = plan(running(), pods, heard(0, 1, failures=(words,))).status.attempts
    assert (attempt.node, attempt.node_name, attempt.rank, attempt.signal) == (1, "gpu-8", 1, 9)


def test_intent_of_elastic_runs_carries_the_step() -> None:
    run = running(4, elasticPolicy={"minNodes": 2, "maxNodes": 6, "step": 2})
    said = report(intent=intent(4, min_nodes=2), members=tuple(map(member, range(4))))
    (action,) = plan(run, all_pods(4), said).actions
    assert action.intent.step == 2  # type: ignore[union-attr]
