"""How ranks leave that no launcher of ours has started: the interpreter takes torch down beneath them."""

import sys

import pytest

from tests.runtime.processes import run_ranks

pytestmark = pytest.mark.ranks


@pytest.mark.skipif(sys.platform != "linux", reason="lists threads by name, as Linux has them")
def test_no_thread_of_a_process_group_outlives_the_interpreter() -> None:
    done = run_ranks("leaving.py", [], 2)
    assert done.returncode == 0, done.stderr
    during, after = [line for line in done.stdout.splitlines() if line.startswith("left:")]
    assert "pt_gloo_runloop" in during
    assert after == "left:"
