"""The order of things in one turn, on a cluster that writes down what it is asked."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from everstep_operator.api.trainingrun import Status, TrainingRun
from everstep_operator.cluster.port import AlreadyExists, Conflict, NotFound, Refused, RunKey, Unavailable
from everstep_operator.plan.model import Event, Pod, PodSpec
from everstep_operator.reconcile import RETRY_SECONDS, reconcile
from everstep_protocol.messages import Intent, Report, StopCause
from tests.plan.builders import all_pods, at, dead, intent, pod, report, run, running

KEY = RunKey("team", "run")


class Recorder:
    """Says what it was made with, notes what it is told, and refuses what it was told to refuse."""

    def __init__(
        self,
        run: TrainingRun | None,
        pods: list[Pod] | None = None,
        report: Report | None = None,
        refuse: dict[str, Exception] | None = None,
    ) -> None:
        self.run, self.pods, self.report = run, pods or [], report
        self.refuse = refuse or {}
        self.calls: list[str] = []
        self.posted: list[Event] = []

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.refuse:
            raise self.refuse[call]

    async def get_run(self, key: RunKey) -> TrainingRun:
        self._note("get_run")
        if self.run is None:
            raise NotFound(f"no {key}")
        return self.run

    async def save_status(self, run: TrainingRun, status: Status) -> TrainingRun:
        self._note("save_status")
        self.run = run.model_copy(update={"status": status})
        return self.run

    async def list_pods(self, run: TrainingRun) -> list[Pod]:
        self._note("list_pods")
        return self.pods

    async def create_pod(self, run: TrainingRun, spec: PodSpec) -> Pod:
        self._note("create_pod")
        made = Pod(spec.name, "uid", spec.role, spec.node, spec.attempt, "Pending", run_uid=run.metadata.uid)
        self.pods = [*self.pods, made]
        return made

    async def delete_pod(self, run: TrainingRun, name: str, uid: str, grace_seconds: float) -> None:
        self._note("delete_pod")
        self.pods = [replace(p, terminating=True) if p.name == name else p for p in self.pods]

    async def get_report(self, run: TrainingRun) -> Report | None:
        self._note("get_report")
        return self.report

    async def post_events(self, run: TrainingRun, events: tuple[Event, ...]) -> None:
        self._note("post_events")
        self.posted += events

    async def delete_run(self, run: TrainingRun) -> None:
        self._note("delete_run")

    async def send_intent(self, run: TrainingRun, intent: Intent) -> Report | None:
        self._note("send_intent")
        assert self.report is not None
        self.report = replace(self.report, intent=intent)
        return self.report


def turn(cluster: Recorder, seconds: float = 0) -> float | None:
    return asyncio.run(reconcile(cluster, KEY, at(seconds)))  # type: ignore[arg-type]


def test_intent_before_act_and_pods_before_the_report() -> None:
    cluster = Recorder(run())
    assert turn(cluster) == 5.0
    created = ["create_pod"] * 3
    assert cluster.calls == ["get_run", "list_pods", "get_report", "save_status", *created, "post_events"]
    cluster.calls.clear()
    turn(cluster)
    assert cluster.calls == ["get_run", "list_pods", "get_report"], "nothing changed, nothing is written"


def test_another_writer_wins_and_nothing_is_done() -> None:
    cluster = Recorder(run(), refuse={"save_status": Conflict("newer")})
    assert turn(cluster) == RETRY_SECONDS
    assert "create_pod" not in cluster.calls


@pytest.mark.parametrize("call", ["get_run", "save_status"])
def test_run_that_is_gone_is_left_alone(call: str) -> None:
    cluster = Recorder(run(), refuse={call: NotFound("gone")})
    assert turn(cluster) is None
    assert "create_pod" not in cluster.calls


def test_name_that_is_ours_already_is_done() -> None:
    cluster = Recorder(run())
    turn(cluster)
    cluster.pods, made = [], cluster.pods  # a list that is a moment old

    async def list_again(run: TrainingRun) -> list[Pod]:
        cluster.calls.append("list_pods")
        return made if "create_pod" in cluster.calls else []

    cluster.list_pods = list_again  # type: ignore[method-assign]
    cluster.calls.clear()
    cluster.refuse = {"create_pod": AlreadyExists("taken")}
    assert turn(cluster) == 5.0
    assert cluster.calls.count("create_pod") == 3


def test_name_that_belongs_to_somebody_else_is_said() -> None:
    cluster = Recorder(run(), refuse={"create_pod": AlreadyExists("taken by a stranger")})
    turn(cluster)
    assert cluster.run is not None
    assert cluster.run.status.refusal is not None
    assert "belongs to a pod of somebody else" in cluster.run.status.refusal.message


def test_a_refused_pod_is_said_and_tried_again_less_and_less_often() -> None:
    quota = 'pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 64, limited: 64'
    cluster = Recorder(run(), refuse={"create_pod": Refused(quota)})
    assert turn(cluster) == RETRY_SECONDS
    assert cluster.calls.count("create_pod") == 1, "the first speaks for the others"
    assert [(event.type, event.reason) for event in cluster.posted if event.type == "Warning"] == [("Warning", "Quota")]
    tried = []
    for second in range(1, 201):
        cluster.calls.clear()
        wake_after = turn(cluster, second)
        tried += [second] * cluster.calls.count("create_pod")
        assert wake_after is not None
        assert cluster.run is not None
        assert (cluster.run.status.phase, cluster.run.status.reason) == ("Pending", "Quota")
        assert quota in cluster.run.status.message
    waits = [later - earlier for earlier, later in pairwise([0, *tried])]
    assert waits == sorted(waits)
    assert 1 <= waits[0] <= 3
    assert 40 <= waits[-1] <= 75
    assert len([event for event in cluster.posted if event.reason == "Quota"]) == 1, "one Event for one sentence"

    cluster.refuse = {}
    turn(cluster, 500)
    assert cluster.calls.count("create_pod") == 3
    turn(cluster, 501)
    assert cluster.run is not None
    assert cluster.run.status.refusal is None
    assert cluster.run.status.reason == "WaitingForNodes"


@pytest.mark.parametrize("refused", [NotFound("gone"), Conflict("another uid")])
def test_pod_that_is_gone_is_deleted(refused: Exception) -> None:
    cluster = Recorder(running(), [pod(None), pod(0), dead(1)], report(), refuse={"delete_pod": refused})
    turn(cluster)
    assert cluster.calls[-3:] == ["delete_pod", "create_pod", "post_events"]


def test_intent_is_sent() -> None:
    suspended = running()
    suspended = suspended.model_copy(update={"spec": suspended.spec.model_copy(update={"suspend": True})})
    cluster = Recorder(suspended, all_pods(), report(intent=intent()))
    turn(cluster)
    assert cluster.calls[-2:] == ["save_status", "send_intent"]  # nothing has changed that makes an Event
    assert cluster.report is not None
    assert cluster.report.intent is not None
    assert cluster.report.intent.stop is StopCause.SUSPEND


def test_cluster_that_does_not_answer_is_an_error_of_the_turn() -> None:
    with pytest.raises(Unavailable):
        turn(Recorder(running(), refuse={"list_pods": Unavailable("timeout")}))
