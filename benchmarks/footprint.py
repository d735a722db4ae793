"""Resident memory of what Everstep adds around a training: `everstep run`, the coordinator, launchers and shims.

    python benchmarks/footprint.py

Runs the digits example for a few epochs on three nodes and reads VmRSS of each of its processes from /proc while it
trains (the largest value seen), and the CPU time that the helpers used per second of the run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TICKS = os.sysconf("SC_CLK_TCK")

#: What a process is called in the table, by words of its command line; the first match counts.
KINDS = {
    "everstep run": ("everstep", "run", "-f"),
    "coordinator": ("coordinator", "--intent"),
    "shim": ("cluster/shim.py",),
    "rank": ("everstep.launch.worker",),
    "launcher": ("launch", "--nproc-per-node"),
    "S3 server": ("weed",),
}


@dataclass
class Usage:
    resident: float = 0.0  # MB, the largest seen of one process
    cpu: dict[int, float] = field(default_factory=dict)  # seconds, by pid


def kind_of(command: list[str]) -> str | None:
    for kind, words in KINDS.items():
        if all(any(word in argument for argument in command) for word in words):
            # A shim's command line names only its folder; a coordinator's shim is still a shim.
            return kind
    return None


def processes_of(state: Path) -> dict[int, list[str]]:
    """Command lines of the processes that belong to the run, by their state folder in command line or environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(state) in environment or any(str(state) in argument for argument in command):
            found[int(folder.name)] = command
    return found


def sample(state: Path, usage: dict[str, Usage]) -> None:
    for pid, command in processes_of(state).items():
        kind = kind_of(command)
        if kind is None:
            continue
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        resident = next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
        usage[kind].resident = max(usage[kind].resident, resident)
        usage[kind].cpu[pid] = (int(stat[11]) + int(stat[12])) / TICKS


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        manifest = yaml.safe_load((ROOT / "examples/digits/trainingrun.yaml").read_text())
        manifest["spec"]["trainer"].update(args=["--epochs", "6"], workingDir=str(ROOT / "examples/digits"))
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(manifest))
        state = Path(folder) / "state"
        usage: dict[str, Usage] = defaultdict(Usage)
        began = time.monotonic()
        run = subprocess.Popen(
            [BIN / "everstep", "run", "-f", path, "--state-dir", state],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while run.poll() is None:
            sample(state, usage)
            time.sleep(0.25)
        wall = time.monotonic() - began
        if run.returncode != 0:
            raise SystemExit(f"the run failed:\n{run.stdout.read().decode() if run.stdout else ''}")
    print(f"{'process':14} {'resident, MB':>13} {'CPU s per s':>12} {'processes':>10}")
    for kind in KINDS:
        if kind in usage:
            cpu = sum(usage[kind].cpu.values()) / wall
            print(f"{kind:14} {usage[kind].resident:13.1f} {cpu:12.3f} {len(usage[kind].cpu):10}")


if __name__ == "__main__":
    main()
