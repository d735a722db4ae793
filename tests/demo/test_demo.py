"""`make demo` when somebody has seen enough of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "digits" / "demo.py"


def test_ctrl_c_saves_and_ends_quietly(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, DEMO, tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    said = ""
    with demo, demo.stdout as out:
        for line in out:
            said += line
            if "Running" in line:
                os.killpg(demo.pid, signal.SIGINT)  # as a terminal does it: to all of them
                break
        said += out.read()
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command resumes" in said
    assert "/3  compare" not in said
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert left == [], "the S3 server and all others are gone"
