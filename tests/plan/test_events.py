"""Events are read off two statuses: each change makes one, and no change none."""

from everstep_operator.plan.model import Plan
from everstep_protocol.messages import RunState
from everstep_protocol.reasons import Reason
from tests.plan.builders import T0, all_pods, at, failure, plan, pod, progress, report, run, running, then


def told_of(plan: Plan) -> list[tuple[str, str]]:
    return [(event.type, event.reason) for event in plan.events]


def test_a_life_in_events() -> None:
    run_ = run(2)
    lost = failure(1, Reason.NODE_LOST)
    seen = []
    for pods, said in (
        ([], None),
        ([pod(None), pod(0), pod(1, phase="Pending", waiting_reason="Unschedulable", message="no GPU")], None),
        (all_pods(), report(RunState.RUNNING, progress=progress(1))),
        (all_pods(), report(RunState.RESTARTING, failures=(lost,))),
        (all_pods(), report(RunState.RUNNING, 2, failures=(lost,), not_durable_since=T0.timestamp())),
        (all_pods(), report(RunState.SUCCEEDED, 2, failures=(lost,))),
    ):
        once = plan(run_, pods, said)
        seen.append(told_of(once))
        run_ = then(run_, once)
        assert plan(run_, pods, said).events == (), "nothing is told twice"
    assert seen == [
        [("Normal", "Pending")],
        [("Warning", "Unschedulable")],
        [("Normal", "Running")],
        [("Warning", "NodeLost"), ("Normal", "Restarting")],
        [("Warning", "SavingFails"), ("Normal", "Running")],
        [("Normal", "Succeeded")],
    ]


def test_failure_is_told_with_node_rank_and_signal() -> None:
    words = failure(1, Reason.OUT_OF_MEMORY, step=41, message="no room")
    event = plan(running(), all_pods(), report(RunState.RESTARTING, failures=(words,))).events[0]
    assert event.message == "no room (node 1, rank 1, signal 9, step 41)"


def test_lost_node_is_told() -> None:
    pods = [pod(None), pod(0), pod(1, machine="gpu-7", machine_lost_since=at(0))]
    events = plan(running(), pods, report(), 11).events
    assert ("Warning", "NodeExcluded") in [(event.type, event.reason) for event in events]
    assert any("gpu-7" in event.message for event in events)


def test_end_of_a_failed_run_is_a_warning() -> None:
    over = plan(running(), all_pods(), report(RunState.FAILED, failures=(failure(1),), message="gave up"))
    assert told_of(over)[-1] == ("Warning", "Failed")


def test_message_fits_into_an_event() -> None:
    long = failure(1, message="x" * 5_000)
    for event in plan(running(), all_pods(), report(RunState.RESTARTING, failures=(long,))).events:
        assert 0 < len(event.message) <= 1_024
