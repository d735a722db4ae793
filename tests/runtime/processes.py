"""Real worker processes for the tests: a script on n ranks over gloo, without any launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everstep_operator.cluster.state import free_ports

SCRIPTS = Path(__file__).parent / "scripts"


def environment(**more: str) -> dict[str, str]:
    """This process's, without what a launcher would have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVERSTEP_", "RANK", "WORLD_SIZE", "LOCAL_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::DeprecationWarning:everstep", **more}


def run_ranks(
    script: str, arguments: Sequence[object], world: int = 1, timeout: float = 120, launched: bool = True, **more: str
) -> subprocess.CompletedProcess[str]:
    """The script on `world` ranks. When one dies the others are killed, as a launcher does. Returns the first failure,
    or rank 0; stderr is everybody's."""
    port = str(free_ports(1)[0])
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    processes = []
    for rank in range(world):
        place = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        } if launched else {}  # fmt: skip
        processes.append(
            subprocess.Popen(
                command, env=environment(**place, **more), text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    end = time.monotonic() + timeout
    failed = None
    while failed is None and any(p.poll() is None for p in processes) and time.monotonic() < end:
        failed = next((p for p in processes if p.poll() not in (None, 0)), None)
        time.sleep(0.02)
    late = [p for p in processes if p.poll() is None]
    for process in late:
        os.killpg(process.pid, signal.SIGKILL)
    texts = [process.communicate() for process in processes]
    assert failed is not None or not late, f"{script} did not end in {timeout} s:\n" + "".join(e for _, e in texts)
    chosen = failed or processes[0]
    return subprocess.CompletedProcess(
        command, chosen.returncode, texts[processes.index(chosen)][0], "".join(e for _, e in texts)
    )


class Exact:
    """exact.py with a checkpoint prefix in a folder."""

    def __init__(self, folder: Path, world: int, *arguments: object, every: int = 2) -> None:
        self.folder, self.world, self.arguments, self.every = folder, world, arguments, every
        folder.mkdir(parents=True, exist_ok=True)
        self.life = 0

    def __call__(self, kill_at: str = "", world: int | None = None, *more: object) -> subprocess.CompletedProcess[str]:
        self.life += 1
        return run_ranks(
            "exact.py",
            [self.folder / "out.json", "--kill-at", kill_at, *self.arguments, *more],
            world or self.world,
            EVERSTEP_CHECKPOINT_URI=(self.folder / "checkpoints").as_uri(),
            EVERSTEP_CHECKPOINT_EVERY_STEPS=str(self.every),
            EVERSTEP_GENERATION=str(self.life),
            EVERSTEP_RUN_NAME="exact",
            EVERSTEP_RUN_UID="uid-1",
        )

    def killed(self, at: str, *more: object, world: int | None = None) -> "Exact":
        done = self(at, world, *more)
        assert done.returncode == -9, f"it was to be killed at {at}, but ended with {done.returncode}:\n{done.stderr}"
        return self

    def finished(self, *more: object, world: int | None = None) -> dict[str, Any]:
        done = self("", world, *more)
        assert done.returncode == 0, done.stderr
        return self.result()

    def result(self, rank: int = 0) -> dict[str, Any]:
        out: dict[str, Any] = json.loads((self.folder / f"out.{rank}").read_text())
        return out

    @property
    def rows(self) -> list[str]:
        """Of the newest version: a life that ended before its first checkpoint leaves one of its own behind."""
        return max((self.folder / "logs" / "lightning_logs").glob("version_*/metrics.csv")).read_text().splitlines()
