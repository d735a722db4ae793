"""Seconds from the SIGKILL of a rank to the next finished step: `everstep launch` next to `torchrun`, same script.

    python benchmarks/recovery.py [--rounds 3] [--nodes 3]

Each round starts a group of single-rank nodes on this machine, kills one rank with SIGKILL in the middle and reads from
the script's own trace when the next step was finished. Everstep and torchrun take turns; medians. Both run the same
script with the same checkpoints on disk, so "next step" is a step of the resumed training in both.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SCRIPT = Path(__file__).parent / "scripts" / "train_steps.py"
BIN = Path(sys.executable).parent
STEPS, KILL_AT = 400, 150


@dataclass
class Outcome:
    recovery: float  # seconds from the kill to the next finished step
    redone: int  # steps that had been finished before the kill and were done again
    finished: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def trace(path: Path) -> list[tuple[float, int]]:
    if not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(float(at), int(step)) for at, step in (row for row in rows if len(row) == 2)]


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "EVERSTEP_CHECKPOINT_URI": f"file://{folder}/checkpoints",
        "EVERSTEP_CHECKPOINT_EVERY_STEPS": "20",
        "EVERSTEP_CHECKPOINT_KEEP": "3",
        "EVERSTEP_TOKEN": "benchmark",
        "OMP_NUM_THREADS": "1",
    }


def start_everstep(folder: Path, nodes: int, script: list[str]) -> list[subprocess.Popen[bytes]]:
    port = free_port()
    log = (folder / "log").open("wb")
    intent = f'{{"nodes": {nodes}, "min_nodes": {nodes}, "max_restarts": 5}}'
    coordinator = ["everstep", "coordinator", "--host", "127.0.0.1", "--port", str(port), "--intent", intent]
    launch = ["everstep", "launch", "--nnodes", str(nodes), "--nproc-per-node", "1"]
    launch += ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    commands = [coordinator] + [[*launch, "--node-rank", str(node), *script] for node in range(nodes)]
    return [subprocess.Popen(c, env=environment(folder), stdout=log, stderr=log, cwd=folder) for c in commands]


def start_torchrun(folder: Path, nodes: int, script: list[str]) -> list[subprocess.Popen[bytes]]:
    port = free_port()
    log = (folder / "log").open("wb")
    # Without this torchrun hangs for a minute at its first restart over several agents.
    settings = {**environment(folder), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", "1", "--max-restarts", "5"]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", "benchmark", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    return [
        subprocess.Popen(
            [*command, "--local-addr", "127.0.0.1", *script], env=settings, stdout=log, stderr=log, cwd=folder
        )
        for _ in range(nodes)
    ]


def measure(launcher: str, nodes: int) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"recovery-{launcher}-"))
    path = folder / "trace"
    start = {"everstep": start_everstep, "torchrun": start_torchrun}[launcher]
    processes = start(folder, nodes, [str(SCRIPT), "--trace", str(path), "--steps", str(STEPS)])
    try:
        deadline = time.monotonic() + 120
        while not (rows := trace(path)) or rows[-1][1] < KILL_AT:
            if time.monotonic() > deadline:
                raise SystemExit(f"{launcher} did not reach step {KILL_AT}:\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.01)
        victim = int((folder / f"pid.{nodes - 1}").read_text())
        before = rows[-1][1]
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        after: list[tuple[float, int]] = []
        while not after and time.monotonic() < deadline:
            # A survivor may still finish the step that it is in; a resumed step is one below those seen before.
            rows = trace(path)
            seen = [row for row in rows if row[0] > killed]
            after = [row for row in seen if row[1] <= before or row[0] > killed + 1.0]
            time.sleep(0.01)
        if not after:
            raise SystemExit(f"{launcher} never went on:\n{(folder / 'log').read_text()[-3000:]}")
        for process in processes[-nodes:]:
            process.wait(timeout=120)
        rows = trace(path)
        return Outcome(after[0][0] - killed, max(0, before - after[0][1] + 1), rows[-1][1] == STEPS)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {"everstep": [], "torchrun": []}
    for number in range(args.rounds):
        for launcher, results in outcomes.items():
            results.append(measure(launcher, args.nodes))
            print(f"round {number + 1}, {launcher}: {results[-1].recovery:.2f} s", file=sys.stderr)
    own = median(o.recovery for o in outcomes["everstep"])
    columns = f"{'SIGKILL to next step, s':>24} {'min':>6} {'max':>6} {'ratio':>7} {'steps redone':>13} {'finished':>9}"
    print(f"{'launcher':10} {columns}")
    for launcher, results in outcomes.items():
        times = [o.recovery for o in results]
        redone = median(o.redone for o in results)
        done = f"{sum(o.finished for o in results)}/{len(results)}"
        print(
            f"{launcher:10} {median(times):24.2f} {min(times):6.2f} {max(times):6.2f} {median(times) / own:6.2f}x "
            f"{redone:13.0f} {done:>9}"
        )


if __name__ == "__main__":
    main()
