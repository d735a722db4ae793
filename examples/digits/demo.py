"""`make demo`: one manifest trains on three nodes, loses a rank, resumes, and finishes with the same weights.

1. `everstep run -f trainingrun.yaml` with its own S3 server; at 40 % another process kills a rank.
2. The same manifest again, in a second state folder, with a second server, undisturbed.
3. A third program hashes the final tensors of both.

Writes build/demo/summary.json, or into the folder that it is given. Exit status 0 only if everything that it promises
was seen.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
BUILD = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "build" / "demo")
BIN = Path(sys.executable).parent
MANIFEST = HERE / "trainingrun.yaml"
WANTED_ACCURACY = 0.97


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


@dataclass
class Training:
    """How a run went."""

    exit_status: int
    seconds: float
    killed: bool  # the accident happened
    phases: list[str]  # as they followed each other


def train(manifest: Path, state: Path, kill_at: float | None = None) -> Training:
    """Run the manifest to its end. Ctrl-C reaches the run by itself: it saves and stops, or leaves at the second."""
    began, phases = time.monotonic(), []
    run = subprocess.Popen([BIN / "everstep", "run", "-f", manifest, "--state-dir", state])
    accident = None
    if kill_at is not None:
        killer = [sys.executable, HERE / "kill_a_rank.py", "--run-json", state / "run.json", "--at", str(kill_at)]
        accident = subprocess.Popen(killer, start_new_session=True)  # Ctrl-C is none of its business
    while run.poll() is None:
        try:
            time.sleep(0.1)
            phase = status_of(state).get("phase")
            if phase and phases[-1:] != [phase]:
                phases.append(phase)
        except KeyboardInterrupt:
            continue
    if accident is not None and accident.poll() is None:
        accident.terminate()
    killed = accident is not None and accident.wait() == 0
    return Training(run.returncode, time.monotonic() - began, killed, phases)


def undisturbed_copy() -> Path:
    """The same manifest with another prefix; the name stays, for the seed of a run comes from it."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    manifest["spec"]["checkpoint"]["uri"] += "-undisturbed"
    manifest["spec"]["trainer"]["workingDir"] = str(HERE)
    path = BUILD / "undisturbed.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def status_of(state: Path) -> dict[str, Any]:
    """Empty while there is none."""
    try:
        status: dict[str, Any] = json.loads((state / "run.json").read_text()).get("status", {})
    except (OSError, ValueError):
        return {}
    return status


def final_weights(state: Path) -> dict[str, Any]:
    """What final_weights.py, a process of its own, says of the run's last checkpoint."""
    command = [sys.executable, HERE / "final_weights.py", "--state-dir", state]
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def ended_early(what: str, training: Training, state: Path) -> int:
    """The demo's exit status: 130 after Ctrl-C, else 1."""
    print(f"{what} ended with status {training.exit_status}; its logs are under {state}", file=sys.stderr)
    return 130 if training.exit_status == 130 else 1


def main() -> int:
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)

    say(f"1/3  everstep run -f {os.path.relpath(MANIFEST)}: three nodes, and an accident at 40 %")
    training = train(MANIFEST, BUILD / "accident", kill_at=0.4)
    if training.exit_status != 0:
        return ended_early("the run", training, BUILD / "accident")
    say(f"2/3  the same manifest, undisturbed ({training.seconds:.0f} s until Succeeded so far)")
    undisturbed = train(undisturbed_copy(), BUILD / "undisturbed")
    if undisturbed.exit_status != 0:
        return ended_early("the undisturbed run", undisturbed, BUILD / "undisturbed")

    say("3/3  compare the final tensors")
    first, second = final_weights(BUILD / "accident"), final_weights(BUILD / "undisturbed")
    status = status_of(BUILD / "accident")
    summary = {
        "phase": status["phase"],
        "steps": status["progress"]["step"],
        "killedAtStep": status["attempts"][-1]["step"] if status.get("attempts") else None,
        "resumedFromStep": (status.get("resumedFrom") or {}).get("step"),
        "restarts": status["restarts"]["total"],
        "testAccuracy": first["results"]["test_acc"],
        "weightsIdenticalToUninterrupted": first["sha256"] == second["sha256"],
        "tensorsCompared": first["tensors"],
        "secondsLostToRestart": round(sum(status["goodput"]["lostSeconds"].values()), 2),
        "goodput": round(status["goodput"]["ratio"], 3),
        "secondsUntilSucceeded": round(training.seconds, 1),
    }
    (BUILD / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    width = max(map(len, summary))
    for name, value in summary.items():
        print(f"  {name:{width}}  {value}")

    promises = {
        "the run Succeeded": summary["phase"] == "Succeeded",
        "a rank was killed, and that was the one restart": training.killed
        and status["restarts"]["byCause"] == {"Killed": 1},
        "it went Running, Restarting, Running": "Running Restarting Running" in " ".join(training.phases),
        "it resumed from a checkpoint before that step": 0
        < (summary["resumedFromStep"] or 0)
        <= (summary["killedAtStep"] or 0),
        "both runs took the same number of steps": summary["steps"]
        == status_of(BUILD / "undisturbed")["progress"]["step"],
        "the undisturbed run was undisturbed": status_of(BUILD / "undisturbed")["restarts"]["total"] == 0,
        f"test accuracy >= {WANTED_ACCURACY}": summary["testAccuracy"] >= WANTED_ACCURACY,
        "the weights are bit for bit those of the undisturbed run": summary["weightsIdenticalToUninterrupted"],
    }
    for promise, kept in promises.items():
        print(f"  {'ok    ' if kept else 'BROKEN'} {promise}")
    print(f"\nsummary: {os.path.relpath(BUILD / 'summary.json')}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
