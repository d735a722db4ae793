"""A coordinator that runs and is not heard: people learn of it, and another one takes its place in the end."""

from dataclasses import replace
from itertools import pairwise

from everstep_operator.api.trainingrun import Phase, TrainingRun
from everstep_operator.plan import observe
from everstep_operator.plan.model import CreatePod, DeletePod, Observed, Plan, Silence
from everstep_protocol.messages import Member, Report, RunState, Workers
from tests.plan.builders import all_pods, at, deleted, intent, plan, pod, progress, report, run, running, then

AWAY = Silence("10.0.0.7:29400 does not answer")
WRONG_KEY = Silence("10.0.0.7:29400 refuses: 401: wrong token", refuses=True)


def looks(run: TrainingRun, answer: Report | Silence | None, *, begin: int, end: int) -> tuple[TrainingRun, list[Plan]]:
    """One every five seconds, while nothing changes."""
    plans = []
    for second in range(begin, end, 5):
        plans.append(plan(run, all_pods(created=at(0)), answer, second))
        run = then(run, plans[-1])
    return run, plans


def events(plans: list[Plan]) -> list[str]:
    return [event.reason for each in plans for event in each.events]


def test_silence_of_a_minute_is_told_once_with_its_why_while_a_shorter_one_is_not() -> None:
    quiet, early = looks(running(), AWAY, begin=1_000, end=1_045)
    assert "CoordinatorSilent" not in events(early)
    assert quiet.status.message == running().status.message
    assert all(each.poll and each.actions == () for each in early)
    told, later = looks(quiet, AWAY, begin=1_045, end=1_200)
    assert events(later) == ["CoordinatorSilent"]
    assert (told.status.phase, told.status.reason) == ("Running", "Training")
    assert told.status.message == "2 of 2 nodes run; run-coordinator-1 runs: 10.0.0.7:29400 does not answer"
    condition = told.status.condition("CoordinatorSilent")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "CoordinatorSilent")
    heard, _ = looks(told, report(progress=progress(20)), begin=1_200, end=1_205)
    assert heard.status.condition("CoordinatorSilent").status == "False"  # type: ignore[union-attr]
    assert "does not answer" not in heard.status.message


def test_run_that_never_began_says_that_its_coordinator_is_not_heard() -> None:
    new = run()
    status = looks(then(new, plan(new)), AWAY, begin=5, end=70)[0].status
    assert (status.phase, status.reason) == ("Starting", "CoordinatorSilent")
    assert "does not answer" in status.message


def test_coordinator_that_begins_is_given_time_before_anything_is_noted() -> None:
    new = run()
    status = looks(then(new, plan(new)), AWAY, begin=1, end=14)[0].status
    assert status.condition("CoordinatorSilent") is None


def test_silent_coordinator_is_replaced_later_and_later_and_workers_are_left_alone() -> None:
    now, attempt, born, replaced = running(), 1, 0, []
    for second in range(1_000, 12_000, 5):
        there = [pod(None, attempt, created=at(born)), pod(0), pod(1)]
        looked = plan(now, there, AWAY, second)
        now = then(now, looked)
        if looked.actions:
            assert looked.actions == (DeletePod(there[0].name, there[0].uid, 1.0),)
            (anew,) = [a.spec for a in plan(now, there[1:], None, second).actions if isinstance(a, CreatePod)]
            assert anew.node is None
            replaced.append(second)
            attempt, born = attempt + 1, second
    pauses = [later - earlier for earlier, later in pairwise(replaced)]
    assert 60 <= replaced[0] - 1_000 <= 120
    assert pauses == sorted(pauses)
    assert 5 <= len(replaced) <= 9
    assert pauses[-1] >= 2_000


def test_dead_node_that_holds_coordinator_and_worker_is_left_while_the_other_launcher_still_waits() -> None:
    """Nobody may look at Nodes: the silence of the coordinator is all that is seen, and nothing confirms an end."""
    now, there, answer = running(), all_pods(created=at(0)), AWAY
    there = [replace(each, machine="good" if each.node == 1 else "bad") for each in there]
    fresh: dict[int | None, int] = {}
    for second in range(1_000, 1_300, 5):
        looked = plan(now, there, answer, second)
        now = then(now, looked)
        for action in looked.actions:
            if isinstance(action, DeletePod):
                asked = action.grace_seconds != 0
                there = [
                    replace(each, terminating=True, gone_by=at(second + 1)) if each.name == action.name else each
                    for each in there
                    if asked or each.name != action.name
                ]
            elif isinstance(action, CreatePod):
                fresh[action.spec.node] = second
                assert action.spec.excluded_nodes == ("bad",)
                there.append(pod(action.spec.node, action.spec.attempt, machine="other", created=at(second)))
        if None in fresh:
            said = [Member(1, "agent-1", "run-1-1", "", Workers.NONE, 1, (), 0.5)]
            answer = report(RunState.WAITING, members=tuple(said), seconds_up=float(second - fresh[None]))
    assert list(fresh) == [None, 0]
    assert fresh[0] - 1_000 <= 150


def test_coordinator_that_answers_with_a_refusal_is_told_of_and_stays() -> None:
    now, plans = looks(running(), WRONG_KEY, begin=1_000, end=9_000)
    assert events(plans) == ["CoordinatorRefuses"]
    assert all(deleted(each) == [] for each in plans)
    assert "401" in now.status.message


def test_report_of_another_run_is_silence() -> None:
    foreign = report(intent=replace(intent(), run_uid="another"))
    assert observe(running(), [], foreign) == Observed(
        silence=Silence("the coordinator of another run answers at its address")
    )


def test_resumed_run_begins_without_the_silence_of_its_earlier_life() -> None:
    silent, _ = looks(running(), AWAY, begin=1_000, end=1_100)
    asleep = silent.model_copy(
        update={"status": silent.status.model_copy(update={"phase": Phase.SUSPENDED})},
    )
    status = plan(asleep, [], None, 1_200).status
    assert status.phase == "Pending"
    assert status.condition("CoordinatorSilent").status == "False"  # type: ignore[union-attr]
