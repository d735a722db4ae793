"""Shared memory between a launcher and its ranks: layout, notes, and the two-sided guarantee."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from everstep.board import NO_LIMIT, NOTE_BYTES, Board
from everstep_protocol.messages import Stage

from .harness import environment


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.create(tmp_path / "board", nproc=2)


def test_a_rank_is_seen(board: Board) -> None:
    seat = Board(board.path).seat(1)
    assert (board.step(1), board.stage(1)) == (0, Stage.STARTING)
    assert board.pid(0) == 0
    assert board.pid(1) > 0
    assert seat.enter(7)
    seat.stage(Stage.EVALUATING)
    assert (board.step(1), board.stage(1), board.furthest()) == (7, Stage.EVALUATING, 7)


def test_a_limit_holds_ranks_back(board: Board) -> None:
    seat = board.seat(0)
    seat.enter(3)
    assert board.propose(1, 5) == (True, 3)
    assert seat.enter(4)
    assert seat.enter(5)
    assert not seat.enter(6)
    board.lift()
    assert seat.enter(6)


def test_a_limit_behind_a_rank_is_refused(board: Board) -> None:
    board.seat(1).enter(9)
    assert board.propose(1, 8) == (False, 9)
    assert board.propose(2, 9) == (True, 9), "a later one can be kept"


def waiting(board: Board, step: int) -> tuple[threading.Thread, list[bool]]:
    seat, answer = board.seat(0), []
    assert not seat.enter(step)
    thread = threading.Thread(target=lambda: answer.append(seat.wait(step)))
    thread.start()
    while board.stage(0) is not Stage.AT_LIMIT:
        time.sleep(0.001)
    return thread, answer


def test_at_the_limit_a_rank_waits_for_the_commit(board: Board) -> None:
    board.propose(1, 5)
    thread, answer = waiting(board, 6)
    assert board.step(0) == 5, "a rank that waits has not entered the step"
    assert not board.seat(1).stopping
    board.commit()
    thread.join()
    assert answer == [True]
    assert board.seat(1).stopping


@pytest.mark.parametrize("how", ["raised", "lifted"])
def test_at_the_limit_a_rank_goes_on_when_it_moves(board: Board, how: str) -> None:
    board.propose(1, 5)
    thread, answer = waiting(board, 6)
    if how == "raised":
        board.propose(2, 6)
    else:
        board.lift()
    thread.join()
    assert answer == [False]
    assert (board.step(0), board.stage(0)) == (6, Stage.TRAINING)


def test_a_commit_of_a_later_limit_does_not_stop_a_rank_before_it(board: Board) -> None:
    """The launcher raises the limit and commits it while a rank still waits at the old one."""
    for turn in range(50):
        board.lift()
        board.propose(2 * turn, 5)
        thread, answer = waiting(board, 6)
        board.propose(2 * turn + 1, 6)
        board.commit()
        thread.join()
        assert answer == [False], "step 6 lies within the agreed limit: it must be done"


def test_notes(board: Board) -> None:
    seat = board.seat(1)
    assert board.note(1) is None
    seat.note({"progress": {"step": 1}})
    seat.note({"progress": {"step": 2}})
    assert board.note(1) == {"progress": {"step": 2}}
    assert board.note(0) is None
    with pytest.raises(ValueError, match="does not fit"):
        seat.note({"text": "x" * NOTE_BYTES})
    assert board.note(1) == {"progress": {"step": 2}}


def test_wrong_places(board: Board, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no place on a board for 2"):
        board.seat(2)
    (tmp_path / "text").write_bytes(b"something else" * 10)
    with pytest.raises(ValueError, match="is not a board"):
        Board(tmp_path / "text")
    with pytest.raises(OSError, match="No such file"):
        Board(tmp_path / "nothing")


HAMMER = """
import sys, time
from everstep.board import Board
seat = Board(sys.argv[1]).seat(int(sys.argv[2]))
step = 0
while True:
    step += 1
    if not seat.enter(step) and seat.wait(step, poll_seconds=0):
        break
print(step - 1)
"""


@pytest.mark.parametrize("turn", range(6))
def test_two_processes_never_pass_an_accepted_limit(tmp_path: Path, turn: int) -> None:
    """Ranks run as fast as they can while limits are proposed close ahead of them. Whenever all could keep one, every
    rank must stop exactly there."""
    board = Board.create(tmp_path / "board", nproc=2)
    command = [sys.executable, "-c", HAMMER, str(board.path)]
    ranks = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True, env=environment()) for n in range(2)
    ]
    try:
        while min(board.step(0), board.step(1)) < 1000:
            time.sleep(0.001)
        proposal, margin = 0, 1
        while True:
            proposal += 1
            limit = board.furthest() + margin
            accepted, furthest = board.propose(proposal, limit)
            if accepted:
                break
            assert furthest > limit
            margin *= 2
        board.commit()
        assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == [str(limit)] * 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


WRITER = """
import sys
from everstep.board import Board
seat = Board(sys.argv[1]).seat(0)
n = 0
while True:
    n += 1
    seat.note({"n": n, "copies": [n] * (n % 700)})
"""


def test_notes_are_whole_while_they_are_written(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", nproc=1)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(board.path)], env=environment())
    try:
        seen: list[int] = []
        until = time.monotonic() + 60
        while len(seen) < 2000:
            assert time.monotonic() < until
            note = board.note(0)
            if note is None:
                continue
            assert note["copies"] == [note["n"]] * (note["n"] % 700)
            seen.append(note["n"])
        assert seen == sorted(seen)
        assert len(set(seen)) > 10
    finally:
        writer.kill()
        writer.wait()


def test_without_a_limit_there_is_none(board: Board) -> None:
    assert board.seat(0).enter(NO_LIMIT)
