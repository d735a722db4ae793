"""trainer.code, fetch and inject: the same folder here as on a cluster."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.errors import ConfigurationError
from everstep.fetch import unpack
from everstep_operator.api.manifest import parse
from tests.run.session import EVERSTEP, TINY, Session

Make = Callable[..., Session]


def tar(files: dict[str, str], mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


def zipped(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


# --- everstep run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["files", "archive"])
def test_everstep_run_brings_the_code(
    session: Make, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # `make` sets it; a script's own folder is not on the path then
    files = {"src/train.py": "import lib\n", "src/lib.py": TINY.read_text()}
    if packed:
        (tmp_path / "code.tar.gz").write_bytes(tar(files))
        code: dict[str, object] = {"archive": f"file://{tmp_path}/code.tar.gz"}
    else:
        code = {"files": [{"path": path, "content": text} for path, text in files.items()]}
    tiny = session("--steps", "5", nodes=1)
    trainer = {"command": ["python", "train.py"], "args": ["--steps", "5"], "code": code, "workingDir": "src"}
    tiny.write(trainer=trainer)
    status, out = tiny.run()
    assert status == 0, out
    assert "note: only a cluster" not in out


def test_everstep_run_says_what_only_a_cluster_does(session: Make) -> None:
    tiny = session("--steps", "5", nodes=1, podTemplate={"spec": {"schedulerName": "mine"}})
    tiny.write(accelerator={"type": "cuda", "count": 1})
    status, out = tiny.run()
    assert status == 0, out
    assert "note: only a cluster acts on accelerator, podTemplate" in out


def test_everstep_run_without_the_archive_says_so(session: Make, tmp_path: Path) -> None:
    tiny = session(nodes=1)
    uri = f"file://{tmp_path}/no-such.tar.gz"
    tiny.write(trainer={"command": ["python", "train.py"], "code": {"archive": uri}})
    status, out = tiny.run()
    assert status == 1
    assert f"there is no {uri}: upload the archive, or correct trainer.code.archive" in out


# --- everstep pack ---------------------------------------------------------------------------------------------------


def pack(folder: Path, *paths: str) -> subprocess.CompletedProcess[str]:
    manifest = folder / "run.yaml"
    manifest.write_text(
        "apiVersion: everstep.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: tiny}\n"
        "spec: {trainer: {command: [python, train.py]}}\n"
    )
    command = [EVERSTEP, "pack", "-f", manifest, *(folder / path for path in paths)]
    return subprocess.run(command, capture_output=True, text=True)


def test_pack_puts_files_and_folders_into_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import model.net\n")
    (tmp_path / "model" / "__pycache__").mkdir(parents=True)
    (tmp_path / "model" / "net.py").write_text("A = 'ä'\n")
    (tmp_path / "model" / "__pycache__" / "net.pyc").write_bytes(b"\xff")
    said = pack(tmp_path, "train.py", "model")
    assert said.returncode == 0, said.stderr
    code = parse(said.stdout, "stdout").spec.trainer.code
    assert code is not None
    assert {file.path: file.content for file in code.files} == {
        "train.py": "import model.net\n",
        "model/net.py": "A = 'ä'\n",
    }


def test_pack_refuses_what_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\xff")
    (tmp_path / "large.py").write_text("#" * 100_001)
    below = tmp_path / "below"
    below.mkdir()
    for folder, path, words in (
        (tmp_path, "data.bin", "data.bin is no text: put it into an archive"),
        (tmp_path, "large.py", "is longer than 100000 characters"),
        (tmp_path, "none.py", "none.py: No such file"),
        (below, "../large.py", "is not below"),
    ):
        said = pack(folder, path)
        assert said.returncode == 2
        assert words in said.stderr
        assert "Traceback" not in said.stderr


# --- everstep fetch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tar.gz", tar({"./train.py": "1", "lib/part.py": "2"})),
        ("a.tar", tar({"train.py": "1", "lib/part.py": "2"}, "w")),
        ("a.zip", zipped({"train.py": "1", "lib/part.py": "2"})),
    ],
)
def test_archives_are_unpacked(tmp_path: Path, name: str, data: bytes) -> None:
    unpack(data, name, tmp_path)
    assert (tmp_path / "train.py").read_text() == "1"
    assert (tmp_path / "lib" / "part.py").read_text() == "2"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.tar.gz", tar({"../train.py": "1"}), "outside of the folder"),
        ("a.zip", zipped({"/train.py": "1"}), "outside of the folder"),
        ("a.tar.gz", b"no archive", "cannot be unpacked"),
        ("a.zip", b"no archive", "cannot be unpacked"),
    ],
)
def test_what_is_no_folder_of_code_is_refused(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    folder = tmp_path / "code"
    with pytest.raises(ConfigurationError, match=words):
        unpack(data, name, folder)
    assert list(tmp_path.rglob("*.py")) == []


# --- everstep inject ------------------------------------------------------------------------------------------------


def test_injected_everstep_does_without_an_installed_one(tmp_path: Path) -> None:
    done = subprocess.run([EVERSTEP, "inject", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # -S: no site-packages, so nothing that is installed is found.
    show = "import obstore, safetensors; from everstep import cli; print(cli.__file__); cli.main(['launch', '--help'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = subprocess.run(
        [sys.executable, "-S", "-P", "-c", show],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert said.stdout.startswith(str(tmp_path)), said.stderr
    assert "usage: everstep launch" in said.stdout


def test_inject_into_what_is_no_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run([EVERSTEP, "inject", tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == 1
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
