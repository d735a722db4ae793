import re
from pathlib import Path

import pytest

from everstep_operator.api.trainingrun import Nodes, Phase, Status
from everstep_operator.plan.phase import GRAPH, next_phase
from everstep_protocol.messages import Member, RunState, Workers
from tests.plan.builders import all_pods, dead, plan, pod, progress, report, run, running, then

DOCUMENT = Path(__file__).parents[2] / "docs" / "phases.md"


def test_drawing_in_the_docs_is_the_graph_in_the_code() -> None:
    arrows = set(re.findall(r"^ +(\S+) --> (\S+)$", DOCUMENT.read_text(), re.M))
    edges = {("[*]" if phase is None else str(phase), str(to)) for phase, tos in GRAPH.items() for to in tos}
    ends = {(str(phase), "[*]") for phase, tos in GRAPH.items() if phase is not None and not tos}
    assert arrows == edges | ends


def test_each_phase_is_in_the_graph_and_reachable() -> None:
    assert set(GRAPH) == {None, *Phase}
    assert set(Phase) == set().union(*GRAPH.values())


@pytest.mark.parametrize("phase", [None, *(phase for phase in Phase if not phase.over and phase != "Suspended")])
@pytest.mark.parametrize("state", [None, *RunState])
@pytest.mark.parametrize("ready", [0, 1, 2])
@pytest.mark.parametrize("failed_now", [False, True])
def test_next_phase_stays_on_the_graph(
    phase: Phase | None, state: RunState | None, ready: int, failed_now: bool
) -> None:
    status = Status(phase=phase, nodes=Nodes(desired=2, ready=ready))
    told = None if state is None else report(state)
    said = next_phase(status, told, min_nodes=2, failed_now=failed_now, seen_generation=0)
    assert said == phase or said in GRAPH[phase]
    assert said is not Phase.RUNNING or ready == 2


def test_a_life_without_accidents() -> None:
    run_ = run(2)
    phases = []
    for pods, said in (
        ([], None),
        (all_pods(phase="Pending"), None),
        (all_pods(), report(RunState.WAITING, 0)),
        (all_pods(), report(RunState.STARTING)),
        (all_pods(), report(RunState.RUNNING, progress=progress(1))),
        (all_pods(), report(RunState.SUCCEEDED, progress=progress(100))),
    ):
        run_ = then(run_, plan(run_, pods, said))
        phases.append(run_.status.phase)
    assert phases == ["Pending", "Pending", "Starting", "Starting", "Running", "Succeeded"]


def test_pending_says_why() -> None:
    new = then(run(2), plan(run(2)))
    waiting = [pod(None), pod(0), pod(1, phase="Pending", message="0/3 nodes have enough memory")]
    status = plan(new, waiting, report(RunState.WAITING, 0)).status
    assert (status.phase, status.reason) == ("Pending", "WaitingForNodes")
    assert "1 of 2 nodes run" in status.message
    assert "0/3 nodes have enough memory" in status.message


def test_a_silent_coordinator_does_not_change_running() -> None:
    assert plan(running(), all_pods()).status.phase == "Running"


@pytest.mark.parametrize("state", [RunState.WAITING, RunState.STARTING])
def test_a_new_coordinator_that_has_not_heard_from_all_does_not_change_running(state: RunState) -> None:
    for generation in (0, 1):
        assert plan(running(), all_pods(), report(state, generation)).status.phase == "Running"
    assert plan(running(), all_pods(), report(state, 2)).status.phase == "Restarting"


@pytest.mark.parametrize(
    ("heard", "seconds_up", "phase"), [(1, 9.9, "Running"), (0, 99.0, "Running"), (1, 10.0, "Restarting")]
)
def test_a_coordinator_that_knows_who_is_there_and_waits_is_believed(heard: int, seconds_up: float, phase: str) -> None:
    """Also where enough nodes are left to go on: they wait for the successor of the one that had to leave."""
    members = (Member(0, "agent", "run-0-1", "", Workers.NONE, 1, (), 0.1),) * heard
    said = report(RunState.WAITING, members=members, seconds_up=seconds_up)
    assert plan(running(min=1), all_pods(), said).status.phase == phase


def test_running_ends_when_fewer_than_min_nodes_run() -> None:
    pods = [pod(None), pod(0), dead(1, exit_code=143)]
    assert plan(running(), pods, report(progress=progress(20))).status.phase == "Restarting"
    assert plan(running(min=1), pods, report(progress=progress(20))).status.phase == "Running"
