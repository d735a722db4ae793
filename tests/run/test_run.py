"""`everstep run` end to end with real processes: coordinator, launchers, and a training script without torch."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import S3Store

from everstep_operator.cluster.s3 import serve
from tests.run.session import EVERSTEP, Session

Make = Callable[..., Session]


def test_a_run_succeeds_and_says_so_again(session: Make) -> None:
    tiny = session("--steps", "60")
    code, out = tiny.run()
    assert code == 0, out
    assert re.search(
        r"default/tiny Succeeded: 60 steps, 0 restarts, goodput \d+%, last checkpoint step 60 at file://", out
    )
    assert tiny.status["phase"] == "Succeeded"
    assert tiny.saved() == [60, 60]
    assert "rank 0 has done 60 steps" in tiny.logs()
    assert tiny.pids() == set()

    code, out = tiny.run()
    assert code == 0
    assert "has Succeeded already (60 steps" in out
    assert f"remove its state folder {tiny.state} and its checkpoints at file://" in out
    assert tiny.logs().count("has done 60 steps") == 2, "nothing was run again"


def test_everstep_run_stays_small(session: Make) -> None:
    tiny = session("--steps", "100000")
    process = tiny.start()
    tiny.until(lambda: tiny.step > 20)
    resident = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert resident is not None
    assert int(resident[1]) / 1024 < 90, "MB"
    tiny.kill()


def test_a_killed_rank_is_a_restart_from_the_last_checkpoint(session: Make) -> None:
    tiny = session("--steps", "120")
    tiny.start()
    tiny.until(lambda: tiny.step > 20)
    os.kill(tiny.ranks()[1], signal.SIGKILL)
    code, out = tiny.finish()
    assert code == 0, out
    assert (tiny.status["restarts"]["total"], tiny.status["restarts"]["byCause"]) == (1, {"Killed": 1})
    assert re.search(r"rank 1 on node 1 failed at step \d+: Killed", out)
    assert "restarting: 1 of at most 10 restarts" in out
    assert re.search(r"resumed from step \d+ \(file://", out)
    assert tiny.logs().count("in generation 2") == 2


def test_killed_and_started_again_it_adopts_the_same_processes(session: Make) -> None:
    tiny = session("--steps", "600")
    tiny.start()
    tiny.until(lambda: tiny.step > 20)
    ranks, uid = tiny.ranks(), tiny.object["metadata"]["uid"]
    assert sorted(ranks) == [0, 1]

    second = subprocess.run(
        [EVERSTEP, "run", "-f", tiny.manifest, "--state-dir", tiny.state], capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 2
    assert f"default/tiny is run already by another everstep run (process {tiny.process.pid}, since" in second.stderr  # type: ignore[union-attr]
    assert tiny.ranks() == ranks

    tiny.kill()
    at_kill = tiny.step
    assert tiny.ranks() == ranks, "training goes on without it"

    tiny.write(numNodes=3)
    code, out = tiny.run()
    assert code == 2
    assert "numNodes of a running run changes only within its elasticPolicy" in out
    tiny.write(numNodes=2, failurePolicy={"maxRestarts": 3})  # a change that a living run takes

    tiny.start()
    tiny.until(lambda: tiny.step > at_kill + 5)
    assert tiny.ranks() == ranks
    code, out = tiny.finish()
    assert code == 0, out
    assert "3 of its pods still run and are adopted" in out
    assert tiny.object["metadata"]["uid"] == uid
    assert tiny.object["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert (tiny.status["restarts"]["total"], tiny.status["generation"]) == (0, 1)
    assert tiny.saved() == [600, 600]


def test_killed_and_left_alone_nothing_is_left_and_it_resumes(session: Make) -> None:
    tiny = session("--steps", "100", "--pause", "0.05", lease=1.0)
    tiny.start()
    tiny.until(lambda: tiny.step > 20)
    assert len(tiny.pids()) >= 2 * 3 + 2, "shim, launcher and rank per node, shim and coordinator"
    tiny.kill()
    tiny.until(lambda: not tiny.pids())
    saved = tiny.saved()
    assert saved[0] == saved[1] > 20, "they have saved at an agreed step before they left"
    assert tiny.status["phase"] == "Running", "nobody was there to write another"

    code, out = tiny.run()
    assert code == 0, out
    assert "none of its pods is left" in out
    assert f"resumed from step {saved[0]} " in out
    assert tiny.status["restarts"]["total"] == 0, "no failure of the run"
    assert tiny.status["generation"] == 2
    assert tiny.saved() == [100, 100]


def test_ctrl_c_once_saves_and_the_same_command_resumes(session: Make) -> None:
    tiny = session("--steps", "150", "--every", "1000")
    tiny.start()
    tiny.until(lambda: tiny.step > 20)
    tiny.signal(signal.SIGINT)
    code, out = tiny.finish()
    assert code == 130, out
    assert "stopping: saving at an agreed step first" in out
    assert "Restarting" not in out
    saved = tiny.saved()
    assert saved[0] == saved[1] > 20
    assert f"last checkpoint step {saved[0]} at" in out
    assert out.rstrip().endswith("the same command resumes")
    assert tiny.pids() == set()

    code, out = tiny.run()
    assert code == 0, out
    assert f"resumed from step {saved[0]} " in out
    assert tiny.status["restarts"]["total"] == 0
    assert tiny.saved() == [150, 150]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_requests_to_stop_are_as_ctrl_c(session: Make, number: int) -> None:
    tiny = session("--steps", "100000", "--every", "100000", nodes=1)
    tiny.start()
    tiny.until(lambda: tiny.step > 5)
    tiny.signal(number)
    code, out = tiny.finish()
    assert code == 130, out
    assert tiny.saved()[0] > 5
    assert tiny.pids() == set()


def test_ctrl_c_before_anything_has_begun(session: Make) -> None:
    tiny = session("--steps", "30", nodes=1)
    process = tiny.start()
    assert process.stdout is not None
    process.stdout.readline()
    tiny.signal(signal.SIGINT)
    code, out = tiny.finish()
    assert code == 130, out
    assert "no checkpoint; the same command resumes" in out
    assert tiny.pids() == set()
    assert tiny.run()[0] == 0
    assert tiny.saved() == [30]


def test_ctrl_c_twice_leaves_at_once(session: Make) -> None:
    tiny = session("--steps", "20", "--slow-at", "8")
    tiny.start()
    tiny.until(lambda: tiny.step == 7)
    tiny.signal(signal.SIGINT)
    time.sleep(1)
    assert tiny.process is not None
    assert tiny.process.poll() is None, "it waits for the agreed step, a minute from now"
    tiny.signal(signal.SIGINT)
    code, out = tiny.finish()
    assert code == 130, out
    assert "left at once" in out
    tiny.until(lambda: not tiny.pids())
    assert tiny.saved() == [5, 5]


def test_killed_while_it_stops_the_run_the_next_one_lets_it_save_and_goes_on(session: Make) -> None:
    tiny = session("--steps", "12", "--pause", "0.4", "--every", "1000", nodes=1)
    tiny.start()
    tiny.until(lambda: tiny.step >= 3)
    tiny.signal(signal.SIGINT)
    assert tiny.process is not None
    assert tiny.process.stdout is not None
    while "stopping:" not in tiny.process.stdout.readline():
        pass
    time.sleep(0.2)  # the coordinator has been told
    tiny.kill()
    code, out = tiny.run()
    assert code == 0, out
    assert "was stopping the run: letting it save first" in out
    assert re.search(r"resumed from step [3-9] ", out)
    assert tiny.saved() == [12]
    assert tiny.status["restarts"]["total"] == 0


def test_a_command_that_does_not_exist_fails_the_run_without_restarts(session: Make) -> None:
    tiny = session(nodes=1, trainer={"command": ["no-such-command", "--flag"]})
    code, out = tiny.run()
    assert code == 1
    assert "default/tiny Failed: CommandNotFound" in out
    assert "no-such-command" in out
    assert "Traceback" not in out
    assert tiny.status["restarts"]["total"] == 0
    assert tiny.pids() == set()


def test_the_same_failure_ends_the_run_with_one_traceback(session: Make) -> None:
    tiny = session("--steps", "20", "--raise-at", "3", "--every", "100")
    code, out = tiny.run()
    assert code == 1
    assert "default/tiny Failed: UserException" in out
    assert out.count("Traceback (most recent call last)") == 1
    assert out.count("ValueError: step 3 is too much") >= 1
    assert tiny.status["restarts"]["total"] < 10, "before the budget is spent"
    assert "logs:" in out

    code, out = tiny.run()
    assert code == 1
    assert "has Failed already" in out


def test_a_script_that_dies_at_once_is_started_again_less_and_less_often(session: Make) -> None:
    tiny = session("--raise-at", "1", nodes=1, failurePolicy={"backoff": {"initialSeconds": 200}})
    tiny.start()
    tiny.until(lambda: "restart 2 of" in tiny.status.get("message", ""))  # the first one is immediate
    assert re.search(r"restart 2 of \d+ in \d{3}\.\d s: UserException", tiny.status["message"])
    assert (tiny.status["phase"], tiny.ranks()) == ("Restarting", {})
    tiny.signal(signal.SIGINT)
    code, out = tiny.finish()
    assert code != 0
    assert out.count("step 1 is too much") <= 2


def test_a_command_that_reports_nothing_succeeds_with_a_note(session: Make) -> None:
    tiny = session(nodes=1, trainer={"command": ["sh", "-c", "echo done"]})
    code, out = tiny.run()
    assert code == 0, out
    assert "without having reported a single step" in out


def test_a_reader_that_goes_away_does_not_stop_the_training(session: Make) -> None:
    tiny = session("--steps", "80", nodes=1)
    process = tiny.start(stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert "default/tiny" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert tiny.status["phase"] == "Succeeded"
    tiny.process = None


def test_a_suspended_manifest_stops_and_goes_on_later(session: Make) -> None:
    tiny = session("--steps", "60", nodes=1, suspend=True)
    code, out = tiny.run()
    assert code == 130
    assert "set spec.suspend to false and run the same command to go on" in out
    assert tiny.status["phase"] == "Suspended"
    tiny.write(suspend=False)
    code, out = tiny.run()
    assert code == 0, out
    assert tiny.saved() == [60]


# With the embedded S3 server.

S3 = {"uri": "s3://bucket/tiny"}


def server(tiny: Session) -> int:
    """Pid of the S3 server."""
    pid: int = json.loads((tiny.state / "s3" / "server" / "process.json").read_text())["pid"]
    return pid


def test_s3_needs_nothing_from_the_user(session: Make) -> None:
    tiny = session("--steps", "150", checkpoint=S3)
    tiny.start(env=without_credentials())
    tiny.until(lambda: tiny.step > 20)
    pid = server(tiny)
    tiny.kill()
    tiny.start(env=without_credentials())  # adopts the server as it does the pods
    tiny.until(lambda: tiny.step > 40)
    assert server(tiny) == pid
    os.kill(tiny.ranks()[0], signal.SIGKILL)
    code, out = tiny.finish()
    assert code == 0, out
    assert f"an embedded server keeps the checkpoints in {tiny.state}/s3/data" in out
    assert re.search(r"resumed from step \d+ \(s3://bucket/tiny", out)
    assert tiny.pids() == set(), "the server has gone, too"
    with serve(tiny.state) as env:
        store = S3Store(
            "bucket",
            endpoint=env["AWS_ENDPOINT_URL"],
            access_key_id=env["AWS_ACCESS_KEY_ID"],
            secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )
        assert bytes(store.get("tiny/rank0.json").bytes()) == b"150"


def test_ctrl_c_saves_to_the_embedded_server_before_it_goes(session: Make) -> None:
    tiny = session("--steps", "120", "--every", "1000", nodes=1, checkpoint=S3)
    tiny.start(env=without_credentials())
    tiny.until(lambda: tiny.step > 10)
    tiny.signal(signal.SIGINT)
    code, out = tiny.finish()
    assert code == 130, out
    assert tiny.pids() == set()
    saved = tiny.status["lastCheckpoint"]["step"]
    tiny.start(env=without_credentials() | {"AWS_ACCESS_KEY_ID": "of somebody else"})
    code, out = tiny.finish()
    assert code == 0, out
    assert f"resumed from step {saved} " in out, "it began with the embedded server and stays with it"


def test_who_brings_a_server_has_to_bring_it_again(session: Make) -> None:
    tiny = session(nodes=1, checkpoint=S3, trainer={"command": ["sleep", "100"]})
    theirs = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    tiny.start(env=without_credentials() | theirs)
    tiny.until(lambda: "Starting" in tiny.status.get("phase", ""))
    tiny.signal(signal.SIGINT)
    assert tiny.finish()[0] == 130
    assert not (tiny.state / "s3").exists()
    tiny.start(env=without_credentials())
    code, out = tiny.finish()
    assert code == 2
    assert "set the same variables again" in out


def without_credentials() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


# What is refused before anything starts.


def everstep_run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([EVERSTEP, "run", *arguments], capture_output=True, text=True, timeout=30, **options)  # type: ignore[call-overload,no-any-return]


def test_a_bad_manifest_is_refused_in_a_sentence(tmp_path: Path) -> None:
    manifest = tmp_path / "run.yaml"
    manifest.write_text(
        "apiVersion: everstep.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: x}\nspec: {numNods: 2}\n"
    )
    done = everstep_run("-f", manifest, cwd=tmp_path)
    assert done.returncode == 2
    assert "numNodes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".everstep").exists()

    done = everstep_run("-f", tmp_path / "missing.yaml")
    assert done.returncode == 2
    assert "missing.yaml: no such file" in done.stderr

    assert everstep_run().returncode == 2


def test_by_default_the_state_lies_below_the_folder_where_one_stands(session: Make, tmp_path: Path) -> None:
    tiny = session(nodes=1, trainer={"command": ["no-such-command"]})
    done = everstep_run("-f", "-", cwd=tmp_path, input=tiny.manifest.read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / ".everstep" / "default" / "tiny" / "run.json").exists()


def test_a_state_folder_of_another_run_is_refused(session: Make) -> None:
    tiny = session(nodes=1, trainer={"command": ["no-such-command"]})
    tiny.run()
    tiny.manifest.write_text(tiny.manifest.read_text().replace("name: tiny", "name: other"))
    code, out = tiny.run()
    assert code == 2
    assert "belongs to default/tiny, not to default/other: give another --state-dir" in out


def test_no_space_for_the_state_is_said(session: Make) -> None:
    tiny = session(nodes=1, trainer={"command": ["true"]})
    tiny.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    code, out = tiny.finish()
    assert code == 1, out
    assert "make room or give another --state-dir" in out
    assert "Traceback" not in out


def test_a_lease_of_no_time_is_refused(session: Make) -> None:
    done = everstep_run("-f", session().manifest, "--lease", "0")
    assert done.returncode == 2
    assert "--lease" in done.stderr


def test_importing_the_command_is_light() -> None:
    code = (
        "import sys, everstep_operator.commands.run; print({'asyncio', 'pydantic', 'yaml', 'rich'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
