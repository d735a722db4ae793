"""Judging a death from outside."""

import signal
from pathlib import Path

import pytest

from everstep.launch.failures import (
    TERMINATION_LIMIT,
    from_status,
    last_words,
    left_record,
    oom_kills,
    root_cause,
    sentence,
)
from everstep_protocol import codec
from everstep_protocol.reasons import LAST_LINES, LINE_LIMIT, TRACEBACK_LIMIT, Failure, Reason


def test_exit_status_without_a_word() -> None:
    failure = from_status(3 << 8, out_of_memory=False)
    assert (failure.reason, failure.exit_code, failure.signal) == (Reason.UNKNOWN, 3, None)
    assert "3" in failure.message


def test_killed_by_a_signal() -> None:
    failure = from_status(signal.SIGKILL, out_of_memory=False)
    assert (failure.reason, failure.signal, failure.exit_code) == (Reason.KILLED, 9, None)
    assert "SIGKILL" in failure.message
    assert "SIGSEGV" in from_status(signal.SIGSEGV, out_of_memory=True).message


def test_a_sigkill_of_the_kernel_for_memory() -> None:
    assert from_status(signal.SIGKILL, out_of_memory=True).reason is Reason.OUT_OF_MEMORY
    assert from_status(signal.SIGSEGV, out_of_memory=True).reason is Reason.KILLED


def test_oom_kills_are_read_from_the_cgroup(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    assert oom_kills(events) == 0
    events.write_text("low 0\nhigh 4\nmax 9\noom 2\noom_kill 1\n")
    assert oom_kills(events) == 1


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    assert left_record(path) is None
    path.write_text("{")
    assert left_record(path) is None
    mine = Failure(Reason.DATA, "x")
    path.write_bytes(codec.dumps(mine))
    assert left_record(path) == mine


def test_root_cause_is_the_first_that_is_no_echo() -> None:
    echo, bug = Failure(Reason.COMMUNICATION, "reset", rank=0), Failure(Reason.USER_EXCEPTION, "boom", rank=1)
    assert root_cause([echo, bug]) is bug
    assert root_cause([bug, Failure(Reason.KILLED, "x")]) is bug
    assert root_cause([echo]) is echo
    assert root_cause([]) is None


def test_sentence() -> None:
    failure = Failure(Reason.USER_EXCEPTION, "ValueError: no", node=1, rank=3, pid=77, step=5, where="train.py:12")
    text = "rank 3 (node 1, pid 77) failed at step 5: UserException: ValueError: no (train.py:12)"
    assert sentence(failure) == text
    assert sentence(Failure(Reason.UNKNOWN, "no port")).startswith("the launcher failed: Unknown: no port")


def test_last_words_that_fit_are_whole() -> None:
    failure = Failure(Reason.USER_EXCEPTION, "boom", node=1, rank=3, traceback="a\nb\n", last_lines=("x",))
    assert codec.loads(Failure, last_words(failure)) == failure


@pytest.mark.parametrize("letter", ["x", "é"])
def test_last_words_fit_into_a_termination_message_and_keep_the_end(letter: str) -> None:
    lines = [f"{number}: {letter * 70}" for number in range(TRACEBACK_LIMIT // 80)]
    failure = Failure(
        Reason.USER_EXCEPTION,
        "boom",
        node=1,
        rank=3,
        exit_code=1,
        traceback="\n".join(lines),
        last_lines=tuple(letter * LINE_LIMIT for _ in range(LAST_LINES)),
    )
    text = last_words(failure)
    assert len(text) <= TERMINATION_LIMIT
    kept = codec.loads(Failure, text)
    assert (kept.reason, kept.message, kept.node, kept.rank, kept.exit_code) == (failure.reason, "boom", 1, 3, 1)
    assert kept.last_lines
    if kept.traceback:
        assert kept.traceback.endswith(lines[-1])


def test_last_words_of_a_long_message_are_no_broken_json() -> None:
    kept = codec.loads(Failure, last_words(Failure(Reason.STORAGE, "é" * 2_000, where="w.py:1")))
    assert kept.message == "é" * 300
