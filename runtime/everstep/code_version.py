"""Which code is running: the commit, whether it was changed since, and how the script was called."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

_SECONDS = 10  # git may have a very large tree to look at


@cache
def code_version() -> dict[str, Any]:
    """{"args", "git_commit", "git_branch", "git_dirty"} of the script that runs; the latter are None where its folder
    is in no git repository, or there is no git."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path.cwd() / "-"
    folder = script.absolute().parent
    if not folder.is_dir():
        folder = Path.cwd()
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain") if commit else None
    return {
        "args": list(sys.argv),
        "git_commit": commit,
        "git_branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") if commit else None,
        "git_dirty": None if changed is None else bool(changed),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
