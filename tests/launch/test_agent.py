"""`everstep launch` as a process, against a coordinator that follows a script. No torch: each case is quick."""

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from everstep_protocol import codec, env
from everstep_protocol.messages import (
    AgentState,
    CheckpointInfo,
    Directive,
    Limit,
    Progress,
    RankState,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, LAST_LINES, LINE_LIMIT, Failure, Reason

from .harness import Bench, Launcher, ScriptedCoordinator, alive, eventually, leave, one_round, run_round, wait

SLEEP = "import time\ntime.sleep(600)\n"

# Takes steps until it may not, then says where it stands and leaves as a trainer would that has saved.
STEPS = """
import os, sys, time
from everstep.board import Board
seat = Board(os.environ["EVERSTEP_BOARD"]).seat(int(os.environ["LOCAL_RANK"]))
step = 0
while True:
    step += 1
    if not seat.enter(step) and seat.wait(step):
        print("saved", step - 1, flush=True)
        sys.exit(85)
    time.sleep(0.005)
"""


def running(coordinator: ScriptedCoordinator, generation: int = 1) -> AgentState:
    """The first state that tells of running workers."""
    return eventually(
        lambda: next(
            (s for s in coordinator.states if s.workers is Workers.RUNNING and s.generation == generation), None
        )
    )


def stepping(coordinator: ScriptedCoordinator) -> AgentState:
    def ranks() -> tuple[RankState, ...]:
        return coordinator.last.ranks if coordinator.states else ()

    eventually(lambda: ranks() and all(rank.step > 0 for rank in ranks()))
    return coordinator.last


def saved_at(launcher: Launcher) -> list[int]:
    """The steps at which the ranks of several say that they have saved."""
    return [int(line.rpartition(" ")[2]) for line in launcher.output.splitlines() if line.startswith("[rank")]


def test_success(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(desk.script("print('done')"), endpoint=coordinator.endpoint)
        assert launcher.wait() == 0
    assert launcher.output == "done\n"
    first, last = coordinator.states[0], coordinator.last
    assert (first.workers, first.generation, first.node, first.nproc) == (Workers.NONE, 0, -1, 1)
    assert first.address == "127.0.0.1"
    assert first.port > 0
    assert (last.workers, last.generation, last.node) == (Workers.SUCCEEDED, 1, 0)
    assert len({state.agent for state in coordinator.states}) == 1


def test_an_exception_ends_all_ranks_of_the_node_and_is_told_once(desk: Bench) -> None:
    script = desk.script(
        "import os, time\nif os.environ['RANK'] == '1':\n    raise ValueError('boom')\ntime.sleep(600)\n"
    )
    words = desk.folder / "words"
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(
            "--nproc-per-node=3", script, endpoint=coordinator.endpoint, **{env.TERMINATION_FILE: str(words)}
        )
        assert launcher.wait() == 1
    failed = [state for state in coordinator.states if state.workers is Workers.FAILED]
    failure = failed[0].failure
    assert failure is not None
    assert (failure.reason, failure.rank, failure.generation) == (Reason.USER_EXCEPTION, 1, 1)
    assert (failure.where, failure.exit_code) == ("train.py:3", 1)
    assert launcher.output.count("Traceback") == 1
    assert launcher.output.count("ValueError: boom (train.py:3)") == 1
    assert launcher.output.rstrip().endswith("everstep: gave up")
    assert codec.loads(Failure, words.read_bytes()) == failure


@pytest.mark.parametrize("arguments", [(), ("--nproc-per-node=2",), ("--log-dir=logs", "--nproc-per-node=2")])
def test_what_a_rank_printed_last_goes_with_its_failure(desk: Bench, arguments: tuple[str, ...]) -> None:
    script = desk.script(
        "import os, signal, sys, time\nif os.environ['LOCAL_RANK'] != os.environ['VICTIM']:\n    time.sleep(600)\n"
        "for i in range(30):\n    print('line', i)\nprint('x' * 999, file=sys.stderr)\nsys.stdout.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = desk.folder / "words"
    more = {env.TERMINATION_FILE: str(words), "VICTIM": "1" if arguments else "0"}
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(*arguments, script, endpoint=coordinator.endpoint, **more)
        assert launcher.wait() == 1
    failure = codec.loads(Failure, words.read_bytes())
    assert (failure.reason, failure.signal) == (Reason.KILLED, 9)
    assert len(failure.last_lines) == LAST_LINES
    assert "line 29" in failure.last_lines
    assert "x" * LINE_LIMIT in failure.last_lines
    assert "--log-dir=logs" in arguments or "line 29" in launcher.output


def test_a_death_is_told_at_once_and_not_at_the_next_poll(desk: Bench) -> None:
    """The coordinator holds the poll for ever: only breaking it off can tell it of the death."""
    told = threading.Event()

    def policy(state: AgentState) -> Directive:
        if state.workers is Workers.RUNNING:
            told.wait(60)
        if state.workers is Workers.FAILED:
            told.set()
        return one_round(state)

    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(desk.script(SLEEP), endpoint=coordinator.endpoint)
        os.kill(running(coordinator).ranks[0].pid, signal.SIGKILL)
        assert told.wait(3.0), "a poll lasts longer than that here"
        assert launcher.wait() == 1
    failure = coordinator.last.failure
    assert failure is not None
    assert (failure.reason, failure.signal) == (Reason.KILLED, signal.SIGKILL)


GRANDCHILDREN = """
import os, subprocess, sys, time
from pathlib import Path
def sleeper(**how):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **how).pid
pids = [sleeper(), sleeper(start_new_session=True)]
# A daemon: its parent is gone, so only the subreaper still knows it.
if os.fork() == 0:
    os.setsid()
    Path("daemon").write_text(str(sleeper(start_new_session=True)))
    os._exit(0)
os.wait()
pids.append(int(Path("daemon").read_text()))
Path("pids.new").write_text(" ".join(map(str, pids)))
os.rename("pids.new", "pids")
if sys.argv[1:] == ["leave"]:
    sys.exit(0)
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "success"])
def test_nothing_that_a_worker_started_outlives_its_round(desk: Bench, end: str) -> None:
    with ScriptedCoordinator() as coordinator:
        words = ["leave"] if end == "success" else []
        launcher = desk.launch(desk.script(GRANDCHILDREN), *words, endpoint=coordinator.endpoint)
        pids = [int(word) for word in eventually(lambda: _text(desk.folder / "pids")).split()]
        assert len(pids) == 3
        if end == "killed":
            os.kill(running(coordinator).ranks[0].pid, signal.SIGKILL)
        assert launcher.wait() == (1 if end == "killed" else 0)
    assert not [pid for pid in pids if alive(pid)]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_workers_die_with_a_launcher_that_was_killed(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("--nproc-per-node=2", desk.script(SLEEP), endpoint=coordinator.endpoint)
        pids = [rank.pid for rank in running(coordinator).ranks]
        launcher.send(signal.SIGKILL)
        launcher.wait()
        eventually(lambda: not any(alive(pid) for pid in pids), "workers outlive their launcher")


def test_wait_means_no_workers_and_a_later_generation_starts_anew(desk: Bench) -> None:
    def policy(state: AgentState) -> Directive:
        if state.generation == 1 and state.workers is not Workers.NONE:
            return wait(5)
        return run_round(state, generation=2 if state.generation else 1)

    script = desk.script(f"import os\nprint('round', os.environ['EVERSTEP_GENERATION'], flush=True)\n{SLEEP}")
    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(script, endpoint=coordinator.endpoint)
        second = running(coordinator, generation=2)
        first = running(coordinator, generation=1)
        gone = next(s for s in coordinator.states if s.generation == 1 and s.workers is Workers.NONE)
        assert gone.failure is None, "we killed them: that is no failure"
        assert not alive(first.ranks[0].pid)
        assert second.port not in (first.port, gone.port), "each round has a fresh port"
        eventually(lambda: "round 2" in launcher.output)
        coordinator.policy = lambda state: leave(1)
        assert launcher.wait() == 1
    assert not alive(second.ranks[0].pid)


def test_a_generation_is_started_once_and_older_ones_never(desk: Bench) -> None:
    script = desk.script("import os\nprint('round', os.environ['EVERSTEP_GENERATION'])")

    def policy(state: AgentState) -> Directive:
        polls = len(coordinator.states)
        if state.generation < 3:
            return run_round(state, generation=3)
        return leave(0) if polls > 12 else run_round(state, generation=3 if polls % 2 else 2)

    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(script, endpoint=coordinator.endpoint)
        assert launcher.wait() == 0
    assert launcher.output == "round 3\n"


class Agreement:
    """A policy that stops a single node at an agreed step, as soon as somebody asks or `stop` is set."""

    def __init__(self, ahead: int = 5) -> None:
        self.ahead = ahead
        self.stop: StopCause | None = None
        self.limit: Limit | None = None

    def __call__(self, state: AgentState) -> Directive:
        if state.workers is Workers.STOPPED:
            return leave(EXIT_STOPPED, f"saved at {self.limit.step if self.limit else 0}")
        if state.workers in (Workers.FAILED, Workers.SUCCEEDED):
            return one_round(state)
        cause = self.stop or state.stop
        furthest = max((rank.step for rank in state.ranks), default=0)
        if cause is not None and self.limit is None and furthest > 0:
            self.limit = Limit(1, furthest + self.ahead, False, cause)
        elif self.limit is not None and state.ack is not None and state.ack.proposal == self.limit.proposal:
            if state.ack.accepted:
                self.limit = replace(self.limit, committed=True)
            else:
                later = state.ack.max_step + 2 * self.ahead
                self.limit = Limit(self.limit.proposal + 1, later, False, self.limit.cause)
        directive = run_round(state, limit=self.limit)
        version = 1 if self.limit is None else 1 + 2 * self.limit.proposal + self.limit.committed
        return replace(directive, version=version)


@pytest.mark.parametrize(
    ("number", "cause", "status"),
    [(signal.SIGTERM, StopCause.PREEMPTION, 143), (signal.SIGINT, StopCause.INTERRUPT, 130),
     (signal.SIGHUP, StopCause.PREEMPTION, 143)],
)  # fmt: skip
def test_a_signal_saves_at_the_agreed_step(desk: Bench, number: int, cause: StopCause, status: int) -> None:
    words = desk.folder / "words"
    with ScriptedCoordinator(Agreement()) as coordinator:
        launcher = desk.launch(
            "--nproc-per-node=2",
            desk.script(STEPS),
            endpoint=coordinator.endpoint,
            **{env.TERMINATION_FILE: str(words)},
        )
        stepping(coordinator)
        launcher.send(number)
        assert launcher.wait() == status
        limit = coordinator.policy.limit  # type: ignore[attr-defined]
    assert (limit.committed, limit.cause) == (True, cause)
    assert saved_at(launcher) == [limit.step] * 2
    assert codec.loads(Failure, words.read_bytes()).reason is Reason.PREEMPTED


def test_a_stop_from_the_coordinator(desk: Bench) -> None:
    policy = Agreement()
    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(desk.script(STEPS), endpoint=coordinator.endpoint)
        stepping(coordinator)
        policy.stop = StopCause.SUSPEND
        assert launcher.wait() == EXIT_STOPPED


def test_a_limit_that_ranks_have_passed_is_refused(desk: Bench) -> None:
    policy = Agreement(ahead=-1)
    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(desk.script(STEPS), endpoint=coordinator.endpoint)
        stepping(coordinator)
        eventually(lambda: coordinator.last.ranks[0].step > 3)
        policy.stop = StopCause.SUSPEND
        refused = eventually(lambda: next((s.ack for s in coordinator.states if s.ack is not None), None))
        policy.ahead = 10
        assert launcher.wait() == EXIT_STOPPED
    assert not refused.accepted
    assert refused.max_step > 0


def test_a_second_interrupt_leaves_at_once(desk: Bench) -> None:
    with ScriptedCoordinator(run_round) as coordinator:  # nobody ever agrees on anything
        launcher = desk.launch(desk.script(STEPS), endpoint=coordinator.endpoint)
        pid = stepping(coordinator).ranks[0].pid
        launcher.send(signal.SIGINT)
        eventually(lambda: "Ctrl-C again" in launcher.output)
        assert alive(pid)
        launcher.send(signal.SIGINT)
        assert launcher.wait() == 130
        assert coordinator.last.workers is Workers.NONE, "it says goodbye"
    assert not alive(pid)


def test_workers_that_do_not_save_within_the_grace_are_killed(desk: Bench) -> None:
    stubborn = STEPS.replace("sys.exit(85)", "time.sleep(600)")
    words = desk.folder / "words"
    with ScriptedCoordinator(Agreement()) as coordinator:
        launcher = desk.launch(
            desk.script(stubborn),
            endpoint=coordinator.endpoint,
            **{env.GRACE_SECONDS: "1", env.TERMINATION_FILE: str(words)},
        )
        pid = stepping(coordinator).ranks[0].pid
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 1
    assert not alive(pid)
    assert "did not save and leave within 1 s" in launcher.output
    assert codec.loads(Failure, words.read_bytes()).reason is Reason.PREEMPTED


def test_leaving_as_if_saved_without_a_stop_is_a_failure(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(desk.script("import sys; sys.exit(85)"), endpoint=coordinator.endpoint)
        assert launcher.wait() == 1
    assert coordinator.last.failure is not None
    assert coordinator.last.failure.exit_code == EXIT_STOPPED


def test_training_goes_on_without_a_coordinator_and_meets_the_next(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("--join-timeout=0.1", desk.script(STEPS), endpoint=coordinator.endpoint)
        before = stepping(coordinator).ranks[0]
        port = coordinator.port
    time.sleep(0.5)  # longer than the join timeout: it is for launchers without workers
    assert launcher.process.poll() is None
    with ScriptedCoordinator(Agreement(), port=port) as coordinator:
        after = stepping(coordinator)
        assert after.ranks[0].pid == before.pid
        assert (after.generation, after.workers) == (1, Workers.RUNNING), "it tells the new one all it must know"
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 143


def two_nodes(state: AgentState) -> Directive:
    round = run_round(state).round
    assert round is not None
    return replace(run_round(state), round=replace(round, nodes=2, world_size=2))


HURRY = "import sys; from everstep.launch import cut_off; cut_off.CUT_OFF_SECONDS = 1.0; "
HURRY += "from everstep.cli import main; sys.exit(main())"


@pytest.mark.parametrize(("ends", "stands_still"), [(False, False), (True, True)])
def test_ranks_that_stand_still_behind_a_dead_network_are_ended(desk: Bench, ends: bool, stands_still: bool) -> None:
    """And those that go on training, with only the coordinator away, are not."""
    still = "if step > 20 and os.path.exists('cut'):\n        time.sleep(600)\n    time.sleep(0.005)"
    script = desk.script(STEPS.replace("time.sleep(0.005)", still) if stands_still else STEPS)
    with ScriptedCoordinator(two_nodes) as coordinator:
        launcher = desk.launch(script, endpoint=coordinator.endpoint, program=("-P", "-c", HURRY))
        rank = stepping(coordinator).ranks[0]
        port = coordinator.port
    (desk.folder / "cut").touch()
    if ends:
        eventually(lambda: not alive(rank.pid))
        assert "cut off from the coordinator and from all other nodes" in launcher.output
    else:
        time.sleep(2.5)
        assert alive(rank.pid)
    with ScriptedCoordinator(two_nodes, port=port) as coordinator:
        told = eventually(lambda: coordinator.states and coordinator.last)
        assert told.workers is (Workers.NONE if ends else Workers.RUNNING)
        assert told.generation == 1


@pytest.mark.parametrize("there", [False, True])
def test_a_single_node_that_reaches_nobody_ends_its_ranks(desk: Bench, there: bool) -> None:
    """Nobody: the API server is its witness that only the coordinator is away."""
    with ScriptedCoordinator() as coordinator, socket.create_server(("127.0.0.1", 0)) as api_server:
        variables = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(api_server.getsockname()[1]),
        }
        launcher = desk.launch(
            desk.script(STEPS), endpoint=coordinator.endpoint, program=("-P", "-c", HURRY), **variables
        )
        api_server.accept()[0].close()
        rank = stepping(coordinator).ranks[0]
        coordinator.__exit__()
        if there:
            for _ in range(5):  # longer than it takes to be cut off
                api_server.accept()[0].close()
            assert alive(rank.pid)
            return
        api_server.close()
        eventually(lambda: not alive(rank.pid))
        assert "cut off from the coordinator and from all other nodes" in launcher.output


def test_a_stop_without_a_coordinator_is_agreed_by_a_single_node_itself(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("--nproc-per-node=2", desk.script(STEPS), endpoint=coordinator.endpoint)
        stepping(coordinator)
    launcher.send(signal.SIGTERM)
    assert launcher.wait() == 143
    first, second = saved_at(launcher)
    assert first == second > 0


def test_without_coordinator_and_workers_it_gives_up(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        port = coordinator.port
    launcher = desk.launch("--join-timeout=0.3", "train.py", endpoint=f"127.0.0.1:{port}")
    assert launcher.wait() == 1
    assert f"no answer from the coordinator http://127.0.0.1:{port} for 0 s" in launcher.output
    assert "Traceback" not in launcher.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_there_is_anything_leaves_at_once(desk: Bench, number: int) -> None:
    with ScriptedCoordinator() as coordinator:
        port = coordinator.port
    launcher = desk.launch("train.py", endpoint=f"127.0.0.1:{port}")
    eventually(lambda: _catches(launcher.pid, number))
    launcher.send(number)
    assert launcher.wait() == 128 + number


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (number - 1) & 1) and bool(caught >> (signal.SIGCHLD - 1) & 1)


def test_a_pod_that_must_go_does_not_wait_for_a_coordinator_that_dithers(desk: Bench) -> None:
    with ScriptedCoordinator(lambda state: wait()) as coordinator:
        launcher = desk.launch("train.py", endpoint=coordinator.endpoint, **{env.GRACE_SECONDS: "1"})
        eventually(lambda: coordinator.states)
        launcher.send(signal.SIGTERM)
        assert launcher.wait() == 143
        assert coordinator.last.stop is StopCause.PREEMPTION


def test_nobody_has_to_read_what_the_launcher_says(desk: Bench) -> None:
    """Its output goes into a closed pipe; the training goes on."""
    with ScriptedCoordinator() as coordinator:
        source, sink = os.pipe()
        os.close(source)
        launcher = desk.launch("--nproc-per-node=2", desk.script(STEPS), endpoint=coordinator.endpoint, stream=sink)
        os.close(sink)
        stepping(coordinator)
        launcher.send(signal.SIGINT)  # it would say something now
        eventually(lambda: coordinator.last.stop is StopCause.INTERRUPT)
        launcher.send(signal.SIGINT)
        assert launcher.wait() == 130


def test_a_wrong_token_is_no_reason_to_wait(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("train.py", endpoint=coordinator.endpoint, **{env.TOKEN: "another"})
        assert launcher.wait() == 1
    assert "refuses: wrong token" in launcher.output
    assert "Traceback" not in launcher.output


def test_what_rank_0_notes_reaches_the_coordinator(desk: Bench) -> None:
    progress = Progress(step=3, max_steps=9, loss=0.5, stage="fit", metrics={"acc": 0.25})
    saved = CheckpointInfo(step=2, uri="s3://b/x", world_size=1, generation=1, time=1.5)
    note = {"progress": codec.encode(progress), "last_checkpoint": codec.encode(saved), "resumed_from": None,
            "not_durable_since": 12.5}  # fmt: skip
    script = desk.script(
        "import os\nfrom everstep.board import Board\n"
        "seat = Board(os.environ['EVERSTEP_BOARD']).seat(int(os.environ['LOCAL_RANK']))\n"
        f"if seat.board.nproc and os.environ['RANK'] == '0':\n    seat.note({note!r})\n"
    )
    with ScriptedCoordinator() as coordinator:
        assert desk.launch("--nproc-per-node=2", script, endpoint=coordinator.endpoint).wait() == 0
    last = coordinator.last
    assert (last.progress, last.last_checkpoint, last.resumed_from) == (progress, saved, None)
    assert last.not_durable_since == 12.5


def test_the_coordinators_notes_are_kept_and_given_back(desk: Bench) -> None:
    def policy(state: AgentState) -> Directive:
        if state.memory is not None:
            return leave(0)
        if state.seen == 0:
            return replace(wait(1), memory={"wall": 12})
        return replace(wait(2), want_memory=True)

    with ScriptedCoordinator(policy) as coordinator:
        assert desk.launch("train.py", endpoint=coordinator.endpoint).wait() == 0
    assert coordinator.last.memory == {"wall": 12}
    assert all(state.memory is None for state in coordinator.states[:-1]), "only when asked for"


def test_command_not_found_needs_no_traceback(desk: Bench) -> None:
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("missing.py", endpoint=coordinator.endpoint)
        assert launcher.wait() == 1
    assert coordinator.last.failure is not None
    assert coordinator.last.failure.reason is Reason.COMMAND_NOT_FOUND
    assert "cannot run missing.py" in launcher.output
    assert "Traceback" not in launcher.output


def test_the_same_bug_is_shown_in_full_only_once(desk: Bench) -> None:
    def policy(state: AgentState) -> Directive:
        if state.workers is Workers.FAILED:
            last = leave(1) if state.generation == 3 else wait(10 * state.generation)
            return replace(last, print_failure=state.failure)
        return run_round(state, state.generation + (state.workers is Workers.NONE))

    with ScriptedCoordinator(policy) as coordinator:
        launcher = desk.launch(desk.script("raise ValueError('boom')"), endpoint=coordinator.endpoint)
        assert launcher.wait() == 1
    assert launcher.output.count("Traceback") == 1
    assert launcher.output.count("failed: UserException: ValueError: boom") == 3


def test_logs_of_all_ranks(desk: Bench) -> None:
    script = desk.script(
        "import os, sys\nprint('out', os.environ['RANK'])\nprint('err', os.environ['RANK'], file=sys.stderr)\n"
        "if os.environ['RANK'] == '1':\n    raise ValueError('boom')\nimport time\ntime.sleep(600)"
    )
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("--nproc-per-node=2", "--log-dir=logs", script, endpoint=coordinator.endpoint)
        assert launcher.wait() == 1
    logs = desk.folder / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["rank0.1.log", "rank1.1.log"]
    second = (logs / "rank1.1.log").read_text()
    assert second.startswith("out 1\nerr 1\nTraceback")
    assert "out 1" not in launcher.output, "only the first rank is shown"
    assert set((logs / "rank0.1.log").read_text().split("\n")) <= {"out 0", "err 0", ""}


def test_prefixes_of_several_ranks(desk: Bench) -> None:
    script = desk.script("import os, sys\nprint('a\\nb')\nprint('end', end='')")
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch("--nproc-per-node=2", script, endpoint=coordinator.endpoint)
        assert launcher.wait() == 0
    for rank in (0, 1):
        mine = [line for line in launcher.output.splitlines() if line.startswith(f"[rank{rank}]: ")]
        assert mine == [f"[rank{rank}]: {word}" for word in ("a", "b", "end")]


def test_a_launcher_leaves_nothing_in_shared_memory(desk: Bench) -> None:
    script = desk.script("import os\nprint(os.environ['EVERSTEP_BOARD'])")
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(script, endpoint=coordinator.endpoint)
        assert launcher.wait() == 0
    assert not Path(launcher.output.strip()).parent.exists()


def test_start_is_small(desk: Bench) -> None:
    """The launcher stays in every pod: it must not cost what a worker costs. 25 MB is what python itself takes here."""
    with ScriptedCoordinator() as coordinator:
        launcher = desk.launch(desk.script(SLEEP), endpoint=coordinator.endpoint)
        running(coordinator)
        status = Path(f"/proc/{launcher.pid}/status").read_text()
        resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
        assert resident < 60_000, "kB"
        launcher.send(signal.SIGINT)
        launcher.send(signal.SIGINT)
