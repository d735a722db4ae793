"""The disk with the checkpoints is full: training goes on, the screen says what is wrong, and when it is over."""

import contextlib
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo.training import Training

#: A mount namespace with a small disk at the given folder, for one process and what it starts.
SMALL_DISK = 'mount -t tmpfs -o size=512k none "$0" && exec "$@"'


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """What a command has to be run under so that the folder `checkpoints` is a disk of half a megabyte."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    under = ["unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(folder)]
    try:
        tried = subprocess.run([*under, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs unshare(1), to give one process a small disk")
    if tried.returncode != 0:
        pytest.skip(f"a user namespace with a mount of its own is not to be had here: {tried.stderr.strip()}")
    return under


def fill(file: Path) -> None:
    """With as much as the disk takes."""
    with contextlib.suppress(OSError), file.open("ab", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


def test_no_space_left(training: Callable[..., Training], small_disk: list[str]) -> None:
    linear = training("--steps", "100000", "--pause", "0.05")
    process = linear.start(under=small_disk)
    linear.until(lambda: linear.status.get("lastCheckpoint"))
    ballast = Path(f"/proc/{process.pid}/root{linear.checkpoints}/ballast")

    def fails() -> bool:
        fill(ballast)  # again and again: old checkpoints go, and leave room
        return "notDurableSince" in linear.status

    linear.until(fails)
    safe = linear.status["lastCheckpoint"]["step"]
    linear.until(lambda: linear.step > safe + 15)
    ballast.unlink()
    linear.until(lambda: not linear.status.get("notDurableSince"))
    assert linear.status["lastCheckpoint"]["step"] > safe + 10
    linear.signal(signal.SIGINT)
    code, out = linear.finish()
    assert code == 130, out
    (told,) = re.findall("checkpoints fail since .*", out)
    assert "no space left: free some" in told
    assert f"training goes on, a failure now would lose the work since step {safe}" in told
    assert "checkpoints work again: step " in out
    assert "Traceback" not in out
    assert linear.status["restarts"]["total"] == 0
