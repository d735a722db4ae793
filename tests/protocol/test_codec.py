"""Messages survive the way through JSON, tolerate what a newer version adds, and refuse what they are not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep_protocol.backoff import Backoff
from everstep_protocol.checkpoints import Marker, Owner, StoredFile
from everstep_protocol.codec import BadMessage, decode, dumps, encode, loads
from everstep_protocol.messages import (
    Action,
    AgentState,
    CheckpointInfo,
    Directive,
    Goodput,
    Grant,
    GrantRequest,
    Intent,
    Limit,
    LimitAck,
    Member,
    Progress,
    RankState,
    Report,
    Round,
    RunState,
    Stage,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import Failure, Reason

FAILURE = Failure(Reason.USER_EXCEPTION, "ValueError: “no”", 1, 2, 3, 1, None, 4, 5, "train.py:12", "Traceback …\n")
RANK = RankState(2, 77, 41, Stage.AT_LIMIT)
PROGRESS = Progress(40, 100, 1, 2.5, 800.0, 1.5, "fit", {"loss": 2.5, "lr": 1.0}, 0.5, 0.1)
SAVED = CheckpointInfo(40, "s3://bucket/run", 3, 2, 1e9, True, "step 41: shard 1 truncated; fell back")
ROUND = Round(2, 4, 6, 2, 3, "10.0.0.1", 29500, 1)
LIMIT = Limit(3, 44, True, StopCause.PREEMPTION)
INTENT = Intent(3, 2, 5, 1, 4, Backoff(2.0, 3.0, 60.0), StopCause.SUSPEND, "uid", 2, Goodput(9.0, 6.0, 1.0, 2.0))
STATE = AgentState(
    "a", 1, "10.0.0.2", 4711, 2, "pod-1", 2, Workers.FAILED, (RANK, RANK), FAILURE, PROGRESS, SAVED, SAVED, 1e9,
    LimitAck(3, False, 45), StopCause.INTERRUPT, 17, {"any": ["thing", 1, None]},
)  # fmt: skip
MEMBER = Member(1, "a", "pod-1", "10.0.0.2", Workers.RUNNING, 2, (RANK,), 0.5)
REPORT = Report(
    1, RunState.RESTARTING, 2, 6, 1, (FAILURE,), "why", (MEMBER,), PROGRESS, SAVED, SAVED, 1e9, StopCause.DEADLINE,
    Goodput(10.0, 6.0, 1.0, 1.0, {"Killed": 2.0}), INTENT,
)  # fmt: skip
MESSAGES = [
    FAILURE,
    ROUND,
    LIMIT,
    INTENT,
    STATE,
    REPORT,
    Directive(9, Action.RUN, ROUND, LIMIT, 85, "because", FAILURE, True, {"notes": {"x": 1}}),
    GrantRequest(2, 40),
    Grant(False, "too late"),
    Marker(1, 2, 0, 40, "000001-000-0000000030", 3, (StoredFile("index.json", 10, "ab"),), 1e9, "uid", "0.1.0"),
    Owner("default", "digits", "uid", 1e9, {"a": "b"}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Any) -> None:
    back = loads(type(message), dumps(message))
    assert back == message
    assert type(back) is type(message)


def test_enums_and_tuples_come_back_as_such() -> None:
    back = loads(AgentState, dumps(STATE))
    assert back.workers is Workers.FAILED
    assert back.stop is StopCause.INTERRUPT
    assert isinstance(back.ranks, tuple)
    assert back.ranks[0].stage is Stage.AT_LIMIT


@given(
    st.builds(
        Progress,
        step=st.integers(0, 2**53),
        max_steps=st.none() | st.integers(0, 2**53),
        loss=st.none() | st.floats(allow_nan=False),
        stage=st.text(),
        metrics=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    )
)
def test_any_progress_round_trips(progress: Progress) -> None:
    assert loads(Progress, dumps(progress)) == progress


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_newer_peer_may_say_more(message: Any) -> None:
    assert decode(type(message), {**encode(message), "invented_later": [1, {"a": None}]}) == message


def test_a_field_with_a_default_may_be_missing() -> None:
    assert decode(Intent, {"nodes": 3, "min_nodes": 2, "max_restarts": 1}) == Intent(3, 2, 1)


def test_whole_numbers_are_floats_too() -> None:
    assert decode(Backoff, {"initial_seconds": 2}) == Backoff(initial_seconds=2.0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "Intent: field 'nodes' is missing"),
        ({"nodes": "3", "min_nodes": 1, "max_restarts": 1}, "Intent.nodes: expected int, got str"),
        ({"nodes": True, "min_nodes": 1, "max_restarts": 1}, "Intent.nodes: expected int, got bool"),
        ({"nodes": 3, "min_nodes": 1, "max_restarts": None}, "Intent.max_restarts: expected int, got NoneType"),
        ({"nodes": 3, "min_nodes": 1, "max_restarts": 1, "stop": "Nap"}, "Intent.stop: 'Nap' is none of ["),
        ({"nodes": 3, "min_nodes": 1, "max_restarts": 1, "backoff": 3}, "Backoff: expected an object, got int"),
        ([1], "Intent: expected an object, got list"),
    ],
)
def test_what_is_wrong_is_named(data: Any, sentence: str) -> None:
    with pytest.raises(BadMessage) as refused:
        decode(Intent, data)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b"\xff\xfe{}", b"[" * 200_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(BadMessage, match="Intent: "):
        loads(Intent, text)


def test_lists_are_checked_inside() -> None:
    data = json.loads(dumps(STATE))
    data["ranks"][1]["pid"] = "x"
    with pytest.raises(BadMessage, match=r"RankState\.pid: expected int, got str"):
        decode(AgentState, data)
    data["ranks"] = {}
    with pytest.raises(BadMessage, match=r"AgentState\.ranks: expected a list, got dict"):
        decode(AgentState, data)
