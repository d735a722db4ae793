"""Judging a death from outside."""

import signal
from pathlib import Path

from everstep.launch.failures import from_status, left_record, oom_kills, root_cause, sentence
from everstep_protocol import codec
from everstep_protocol.reasons import Failure, Reason


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
