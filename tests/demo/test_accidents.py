"""What happens to a real training from outside: it ends with the weights that it would have had anyway, or says why."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo.training import LINEAR, Training
from tests.run.session import EVERSTEP

Make = Callable[..., Training]
SLOWLY = ("--pause", "0.1")


@pytest.mark.parametrize("forget", [(), ("--forget-random",)], ids=["all-restored", "random-states-not-restored"])
def test_a_killed_rank_changes_no_bit(training: Make, undisturbed: str, forget: tuple[str, ...]) -> None:
    """The other way round, too: without the restoring of random states the same comparison sees a difference."""
    linear = training(*SLOWLY, *forget, nodes=2)
    linear.start()
    linear.until(lambda: linear.step > 7)
    os.kill(linear.ranks()[1], signal.SIGKILL)
    code, out = linear.finish()
    assert code == 0, out
    assert re.search(r"rank 1 on node 1 failed at step \d+: Killed", out)
    assert out.count("restarting") == 1, "it is said once"
    assert "restarting: 1 of at most 10 restarts" in out
    assert (linear.weights() == undisturbed) is not bool(forget)
    assert linear.status["progress"]["maxSteps"] == 100
    assert " step 100/100 " in out
    assert out.count("Succeeded") == 2, "the last line of the table, and the closing line"


def test_ctrl_c_once_saves_the_step_where_it_stops_and_resumes_there(training: Make, undisturbed: str) -> None:
    linear = training(*SLOWLY, nodes=2, every=100_000)
    linear.start()
    linear.until(lambda: linear.step > 7)
    linear.signal(signal.SIGINT)
    code, out = linear.finish()
    assert code == 130, out
    (saved,) = {name.step for name in linear.checkpoint_names()}
    assert 7 < saved < 100
    assert linear.status["lastCheckpoint"]["step"] == linear.status["progress"]["step"] == saved
    assert f"stopped: {saved} steps, 0 restarts" in out
    assert f"last checkpoint step {saved} at" in out
    assert "restarting" not in out.lower()
    assert linear.pids() == set()

    code, out = linear.run()
    assert code == 0, out
    assert f"resumed from step {saved} (" in out
    assert linear.status["restarts"]["total"] == 0
    assert linear.weights() == undisturbed


def test_ctrl_c_twice_leaves_at_once(training: Make) -> None:
    linear = training("--slow-at", "12")
    process = linear.start()
    linear.until(lambda: linear.status.get("lastCheckpoint", {}).get("step") == 10)
    linear.signal(signal.SIGINT)
    assert process.stdout is not None
    before = ""
    while "stopping:" not in before:
        before += process.stdout.readline()
    assert process.poll() is None, "it waits for the agreed step, a minute from now"
    linear.signal(signal.SIGINT)
    code, out = linear.finish()
    assert code == 130, before + out
    assert re.search(r"left at once: 1[01] steps", out)
    assert "last checkpoint step 10 at" in out
    linear.until(lambda: not linear.pids())


def test_everstep_run_killed_and_started_again(training: Make, undisturbed: str) -> None:
    """Adopts the workers that live; resumes from the last checkpoint if they are gone."""
    linear = training("--pause", "0.2", nodes=2)
    linear.start()
    linear.until(lambda: linear.step > 2)
    ranks = linear.ranks()
    assert sorted(ranks) == [0, 1]
    linear.kill()
    at_kill = linear.step
    linear.start()
    linear.until(lambda: linear.step > at_kill)
    assert linear.ranks() == ranks
    linear.until(lambda: linear.status.get("lastCheckpoint"))
    linear.kill()
    for pid in linear.pids():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it went with its parent
    linear.until(lambda: not linear.pids())
    saved = linear.checkpoint_names()[0].step

    code, out = linear.run()
    assert code == 0, out
    assert "none of its pods is left" in out
    assert f"resumed from step {saved} (" in out
    assert linear.weights() == undisturbed


def test_everstep_run_killed_and_not_started_again_leaves_no_process(training: Make) -> None:
    linear = training(*SLOWLY, "--steps", "100000", lease=1.0, every=100_000)
    linear.start()
    linear.until(lambda: linear.step > 2)
    assert linear.ranks()
    linear.kill()
    linear.until(lambda: not linear.pids())
    assert linear.checkpoint_names()[0].step > 2, "they have saved before they left"


def test_ctrl_c_under_everstep_launch(tmp_path: Path) -> None:
    linear = Training(tmp_path)
    environment = os.environ | {"EVERSTEP_CHECKPOINT_URI": linear.spec["checkpoint"]["uri"]}
    command = [EVERSTEP, "launch", "--nproc-per-node", "2", LINEAR, "--pause", "0.1", "--say-at", "3"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as launch:
        assert launch.stdout is not None
        while "in step 3" not in (line := launch.stdout.readline()):
            assert line
        launch.send_signal(signal.SIGINT)
        out, _ = launch.communicate(timeout=100)
    assert launch.returncode == 130, out
    assert "interrupted: saving at an agreed step" in out
    assert "Traceback" not in out
    (saved,) = linear.checkpoint_names()
    assert 3 <= saved.step < 100
