"""No test leaves files in the tree: what a script writes into its current folder belongs into tmp_path. None is judged
by how long it takes."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
_BEFORE = pytest.StashKey[set[str]]()

settings.register_profile("at any pace", deadline=None)
settings.load_profile("at any pace")


def _entries() -> set[str]:
    return {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}


def pytest_sessionstart(session: pytest.Session) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's `&` does; what tests start would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    session.stash[_BEFORE] = _entries()


def pytest_sessionfinish(session: pytest.Session) -> None:
    left = _entries() - session.stash[_BEFORE]
    if left and not hasattr(session.config, "workerinput"):  # in the process that has started the others
        session.config.get_terminal_writer().line(
            f"\na test has left {', '.join(sorted(left))} in {ROOT}: let it write to tmp_path", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
