"""Launchers and the real coordinator as processes: deaths, stops, restarts. Ranks are small scripts without torch."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from everstep.launch.places import PortReservation
from everstep_protocol import codec
from everstep_protocol.messages import PROGRESS, Report, RunState
from everstep_protocol.reasons import EXIT_STOPPED, Reason
from everstep_protocol.version import HEADER, PROTOCOL_VERSION

from .harness import TOKEN, TORCH_SCRIPT, Bench, alive, eventually

# Steps until `stop` exists, in step with nobody: what matters here is who lives, and where they stop.
TRAIN = """
import json, os, sys, time
from pathlib import Path
from everstep.board import Board
rank, generation = int(os.environ["RANK"]), int(os.environ["EVERSTEP_GENERATION"])
seat = Board(os.environ["EVERSTEP_BOARD"]).seat(int(os.environ["LOCAL_RANK"]))
names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
record = {"pid": os.getpid(), **{name: os.environ[name] for name in names}}
draft = Path(f"new.{rank}")
draft.write_text(json.dumps(record))
draft.rename(f"started.{generation}.{rank}")
step = 0
while not Path("stop").exists():
    step += 1
    if not seat.enter(step) and seat.wait(step):
        Path(f"saved.{rank}").write_text(str(step - 1))
        sys.exit(85)
    if rank == 0:
        seat.note({"progress": {"step": step, "max_steps": 100000, "stage": "fit"}})
    if "fail" in sys.argv and step == 3 and rank == 1:
        raise ValueError("boom")
    time.sleep(0.01)
"""


class Cluster:
    """Two nodes with one rank each, and their coordinator."""

    def __init__(self, desk: Bench, *words: str, replaces: bool = False) -> None:
        self.desk = desk
        self.folder = desk.folder
        self.words = words
        self.port = PortReservation()
        self.endpoint = f"127.0.0.1:{self.port.number}"
        self.coordinator = desk.coordinator(self.port.number, nodes=2, replaces=replaces)
        self.script = desk.script(TRAIN)
        self.launchers = [self.launch(node) for node in range(2)]

    def launch(self, node: int) -> Any:
        return self.desk.launch("--node-rank", node, self.script, *self.words, endpoint=self.endpoint)

    def started(self, generation: int) -> list[dict[str, Any]]:
        """What the two ranks of a generation say of themselves, once both have begun."""
        paths = [self.folder / f"started.{generation}.{rank}" for rank in range(2)]
        eventually(lambda: all(path.exists() for path in paths), f"generation {generation}")
        return [json.loads(path.read_text()) for path in paths]

    def report(self) -> Report:
        headers = {"Authorization": f"Bearer {TOKEN}", HEADER: str(PROTOCOL_VERSION)}
        request = urllib.request.Request(f"http://{self.endpoint}{PROGRESS}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return codec.loads(Report, answer.read())

    def stepping(self) -> Report:
        """A report that tells of steps."""

        def look() -> Report | None:
            report = self.report()
            return report if report.progress is not None and report.progress.step > 0 else None

        return eventually(look)

    def finish(self) -> None:
        (self.folder / "stop").touch()
        assert [launcher.wait() for launcher in self.launchers] == [0, 0]
        assert self.report().state is RunState.SUCCEEDED


def test_a_killed_worker_restarts_both_nodes(desk: Bench) -> None:
    cluster = Cluster(desk)
    first = cluster.started(1)
    cluster.stepping()
    os.kill(first[1]["pid"], signal.SIGKILL)
    second = cluster.started(2)
    assert not alive(first[0]["pid"]), "the survivor's round is over, too"
    assert {record["WORLD_SIZE"] for record in second} == {"2"}
    assert {record["TORCHELASTIC_RESTART_COUNT"] for record in second} == {"1"}
    assert second[0]["MASTER_PORT"] == second[1]["MASTER_PORT"] != first[0]["MASTER_PORT"]
    report = cluster.report()
    assert report.restarts == 1
    assert [(f.reason, f.rank, f.signal) for f in report.failures] == [(Reason.KILLED, 1, signal.SIGKILL)]
    cluster.finish()


def test_a_sigterm_to_one_node_saves_both_at_one_step(desk: Bench) -> None:
    cluster = Cluster(desk)
    cluster.started(1)
    cluster.stepping()
    cluster.launchers[1].send(signal.SIGTERM)
    assert [launcher.wait() for launcher in cluster.launchers] == [EXIT_STOPPED, 143]
    steps = {(cluster.folder / f"saved.{rank}").read_text() for rank in range(2)}
    assert len(steps) == 1
    report = cluster.report()
    assert (report.state, report.restarts) == (RunState.STOPPED, 0), "a stop is no failure"


def test_a_node_that_has_to_leave_leaves_alone_where_somebody_comes_in_its_place(desk: Bench) -> None:
    cluster = Cluster(desk, replaces=True)
    cluster.started(1)
    cluster.stepping()
    cluster.launchers[1].send(signal.SIGTERM)
    assert cluster.launchers[1].wait() == 143
    steps = {(cluster.folder / f"saved.{rank}").read_text() for rank in range(2)}
    assert len(steps) == 1, "both saved at one step"
    cluster.launchers[1] = cluster.launch(1)
    cluster.started(2)
    assert cluster.launchers[0].process.poll() is None
    assert cluster.report().restarts == 0
    cluster.finish()


def test_a_lost_launcher_takes_its_workers_along_and_may_return(desk: Bench) -> None:
    cluster = Cluster(desk)
    first = cluster.started(1)
    cluster.launchers[0].send(signal.SIGKILL)
    cluster.launchers[0].wait()
    eventually(lambda: not alive(first[0]["pid"]), "its worker outlived it")
    cluster.launchers[0] = cluster.launch(0)
    second = cluster.started(2)
    assert not alive(first[1]["pid"])
    assert second[0]["pid"] != first[0]["pid"]
    cluster.finish()


def test_training_does_not_notice_that_the_coordinator_dies(desk: Bench) -> None:
    cluster = Cluster(desk)
    first = cluster.started(1)
    before = cluster.stepping()
    cluster.coordinator.kill()
    cluster.coordinator.wait()
    time.sleep(0.5)
    cluster.coordinator = desk.coordinator(cluster.port.number, nodes=2)
    eventually(lambda: _answers(cluster))
    after = eventually(lambda: report if (report := cluster.stepping()).generation == 1 else None)
    assert after.progress is not None
    assert before.progress is not None
    assert after.progress.step > before.progress.step
    assert all(alive(record["pid"]) for record in first)
    assert not (cluster.folder / "started.2.0").exists()
    cluster.finish()


def _answers(cluster: Cluster) -> bool:
    try:
        cluster.report()
    except OSError:
        return False
    return True


def test_a_bug_ends_the_run_and_is_shown_by_one_launcher(desk: Bench) -> None:
    cluster = Cluster(desk, "fail")
    assert [launcher.wait() for launcher in cluster.launchers] == [1, 1]
    outputs = [launcher.output for launcher in cluster.launchers]
    assert [output.count("Traceback") for output in outputs] == [0, 1], "only where it happened, and once"
    assert "train.py:" in outputs[1]
    report = cluster.report()
    assert report.state is RunState.FAILED
    assert {failure.reason for failure in report.failures} == {Reason.USER_EXCEPTION}


@pytest.mark.parametrize(("words", "tries"), [((), 1), (("--max-restarts=1",), 2)])
def test_a_script_that_raises_before_it_trains_is_run_once_unless_restarts_are_asked_for(
    desk: Bench, words: tuple[str, ...], tries: int
) -> None:
    launcher = desk.launch(*words, desk.script("print('a side effect', flush=True)\nNone.fit()"))
    assert launcher.wait() == 1
    assert launcher.output.count("a side effect") == tries, launcher.output
    assert "'NoneType' object has no attribute 'fit'" in launcher.output


@pytest.mark.parametrize("victim", ["worker", "coordinator"])
def test_standalone_brings_its_own_coordinator(desk: Bench, victim: str) -> None:
    launcher = desk.launch("--standalone", "--nproc-per-node=2", desk.script(TRAIN))
    first = [desk.folder / f"started.1.{rank}" for rank in range(2)]
    eventually(lambda: all(path.exists() for path in first))
    if victim == "worker":
        os.kill(json.loads(first[0].read_text())["pid"], signal.SIGKILL)
        eventually(lambda: (desk.folder / "started.2.1").exists())
    else:
        os.kill(_own_coordinator(launcher.pid), signal.SIGKILL)
        eventually(lambda: "started again" in launcher.output)
    coordinator = _own_coordinator(launcher.pid)
    (desk.folder / "stop").touch()
    assert launcher.wait() == 0, launcher.output
    assert not alive(coordinator)
    assert (desk.folder / "started.2.0").exists() == (victim == "worker")


def _own_coordinator(launcher: int) -> int:
    """The child that is no worker."""

    def look() -> int | None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == launcher and b"coordinator" in words:
                return int(folder.name)
        return None

    found = eventually(look)
    assert found is not None
    return found


def test_an_interrupt_before_any_step_leaves_with_nothing_saved(desk: Bench) -> None:
    launcher = desk.launch("--standalone", desk.script("from pathlib import Path\nPath('up').touch()\nimport time\n"
                                                       "time.sleep(600)\n"))  # fmt: skip
    eventually((desk.folder / "up").exists)
    launcher.send(signal.SIGINT)
    assert launcher.wait() == 130


def test_process_groups_of_torch_on_two_nodes(desk: Bench) -> None:
    """Rank 0's worker opens the store on the port that its launcher keeps for it, in each round on another."""
    pytest.importorskip("torch")
    port = PortReservation()
    desk.coordinator(port.number, nodes=2)
    script = desk.script(TORCH_SCRIPT)
    launchers = [desk.launch("--node-rank", n, script, endpoint=f"127.0.0.1:{port.number}") for n in range(2)]
    assert [launcher.wait() for launcher in launchers] == [0, 0], [launcher.output for launcher in launchers]
    assert ["done 0 6 resumed" in launchers[0].output, "done 1 6 resumed" in launchers[1].output] == [True, True]
    shown = [line for launcher in launchers for line in launcher.output.splitlines() if " failed" in line]
    assert [line.partition(" (")[0] for line in shown] == ["everstep: rank 1"], "the echo on rank 0 is not shown"


def test_without_restarts_the_first_failure_ends_it(desk: Bench) -> None:
    launcher = desk.launch("--max-restarts=0", desk.script("import os\nos.kill(os.getpid(), 9)"))
    assert launcher.wait() == 1
    assert launcher.output.count("killed by SIGKILL") >= 1
