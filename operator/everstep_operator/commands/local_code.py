"""trainer.code on this machine: the same folder that a pod on a cluster finds, below the state folder."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from everstep_operator.api.code import Code
from everstep_operator.cluster.port import ClusterError


def bring_code(code: Code, folder: Path, store_env: Mapping[str, str]) -> None:
    """Write or fetch the files. `store_env`: address and credentials of the store.

    Raises:
        ClusterError: the archive cannot be fetched or unpacked; the message says why.
    """
    for file in code.files:
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.content, encoding="utf-8")
    if code.archive is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "everstep.cli", "fetch", code.archive, str(folder)]
    said = subprocess.run(command, env={**os.environ, **store_env}, capture_output=True, text=True)
    if said.returncode != 0:
        lines = said.stderr.strip().splitlines()
        raise ClusterError(lines[-1].removeprefix("everstep fetch: ") if lines else "everstep fetch failed")
