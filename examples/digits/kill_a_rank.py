"""The accident of the demo: wait until a run has done a share of its steps, then SIGKILL one of its ranks.

    python kill_a_rank.py --run-json .everstep/default/digits/run.json --at 0.4 --rank 1

It is no part of Everstep and asks nobody: it reads the run's status, as `kubectl get -o json` would show it, finds the
rank by its environment in /proc, as any process of this user can, and kills it.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def read_run(path: Path) -> dict[str, Any]:
    """The object with its status; empty while it does not exist yet."""
    try:
        run: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return run


def find_rank(uid: str, rank: int) -> int | None:
    """The pid of a rank of the run: the oldest process with both in its environment (children inherit it)."""
    wanted = {f"EVERSTEP_RUN_UID={uid}".encode(), f"RANK={rank}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                started = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(folder.name)))
        except (OSError, ValueError):
            continue
    return min(found)[1] if found else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run-json", type=Path, required=True)
    parser.add_argument("--at", type=float, default=0.4, help="share of the steps that must be done")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120, help="seconds")
    args = parser.parse_args()
    deadline = time.monotonic() + args.timeout
    while time.monotonic() < deadline:
        run = read_run(args.run_json)
        status = run.get("status", {})
        if status.get("phase") in ("Succeeded", "Failed"):
            break
        progress = status.get("progress") or {}
        step, total = progress.get("step") or 0, progress.get("maxSteps") or 0
        if total and step >= args.at * total and (pid := find_rank(run["metadata"]["uid"], args.rank)):
            os.kill(pid, signal.SIGKILL)
            print(f">>> kill -9 {pid}: rank {args.rank} is gone; step {step} of {total} was reported last", flush=True)
            return 0
        time.sleep(0.05)
    print("nobody was killed: the run never came that far, or was over too soon", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
