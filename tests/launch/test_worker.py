"""The bootstrap runs a script as python would, and leaves a record when it raises."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from everstep_protocol import codec, env
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason

from .harness import environment


@dataclass
class Ran:
    status: int
    out: str
    err: str
    failure: Failure | None


def run(folder: Path, *words: str, parent: int | None = None, **variables: str) -> Ran:
    record = folder / "failure.json"
    parent = os.getpid() if parent is None else parent
    done = subprocess.run(
        [sys.executable, "-P", "-m", "everstep.launch.worker", f"--parent={parent}", *words],
        cwd=folder,
        env=environment(**{env.FAILURE_FILE: str(record), **variables}),
        capture_output=True,
        text=True,
    )
    left = codec.loads(Failure, record.read_bytes()) if record.exists() else None
    return Ran(done.returncode, done.stdout, done.stderr, left)


def python(folder: Path, *words: str) -> str:
    """What plain python prints for it: the yardstick."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


TELL = """
import sys
print(sys.argv, sys.path[0], __name__, __file__, __spec__ and __spec__.name, __package__, __doc__)
print(sys.modules["__main__"].__dict__ is globals(), __builtins__ is not None, type(__loader__).__name__)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["sub/train.py", "--lr", "1", "--", "x"],
        ["-m", "pack.train", "a"],
        ["-m", "pack", "a"],
        ["-m", "single"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_script_sees_what_it_would_see_under_python(tmp_path: Path, words: list[str]) -> None:
    for name in ("sub/train.py", "pack/__init__.py", "pack/__main__.py", "pack/train.py", "single.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name.endswith("__init__.py") else '"""Doc."""' + TELL)
    ran = run(tmp_path, *words)
    assert ran.out == python(tmp_path, *words)
    assert (ran.status, ran.failure) == (0, None)


def test_a_folder_with_a_main(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("import sys, other; print(sys.argv, other.x)")
    (tmp_path / "app" / "other.py").write_text("x = 3")
    assert run(tmp_path, "app", "1").out == python(tmp_path, "app", "1")


def test_a_forbidden_path_stays_forbidden(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys; print(sys.path[0])")
    assert str(tmp_path) not in run(tmp_path, "train.py", PYTHONSAFEPATH="1").out


def test_modules_in_the_current_folder_do_not_disturb_the_bootstrap(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.py").write_text("print('fine')")
    assert run(tmp_path, "sub/train.py").out == "fine\n"


CHILDREN = """
import multiprocessing, pickle, sys

class Thing:
    def __eq__(self, other):
        return type(other) is type(self)

def work(thing):
    return isinstance(thing, Thing)

if __name__ == "__main__":
    assert pickle.loads(pickle.dumps(Thing())) == Thing()
    for how in ("spawn", "fork"):
        with multiprocessing.get_context(how).Pool(1) as pool:
            print(how, pool.map(work, [Thing()]))
"""


@pytest.mark.parametrize("words", [["train.py"], ["-m", "train"]], ids=["script", "module"])
def test_multiprocessing_finds_the_main_module(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "train.py").write_text(CHILDREN)
    ran = run(tmp_path, *words)
    assert ran.out == "spawn [True]\nfork [True]\n", ran.err


def test_exit_handlers_still_see_the_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import atexit, __main__\nname = 'mine'\natexit.register(lambda: print(name, __main__.name))"
    )
    assert run(tmp_path, "train.py").out == "mine mine\n"


def test_threads_and_unflushed_output_are_waited_for(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late', end=''))).start()\nprint('early')"
    )
    assert run(tmp_path, "x.py").out == "early\nlate"


def test_an_exception_is_recorded_and_not_printed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def step():\n    raise ValueError('no\\nmore')\n")
    (tmp_path / "train.py").write_text("import model\n\nmodel.step()\n")
    ran = run(tmp_path, "train.py")
    assert (ran.status, ran.err) == (1, "")
    assert ran.failure is not None
    assert (ran.failure.reason, ran.failure.message) == (Reason.USER_EXCEPTION, "ValueError: no")
    assert ran.failure.where == "model.py:2"
    assert ran.failure.traceback.startswith("Traceback (most recent call last):\n  File")
    assert "worker.py" not in ran.failure.traceback, "the bootstrap's frames are nobody's business"
    assert ran.failure.traceback.count("File ") == 2


def test_a_chained_exception(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from everstep.errors import StorageError\n"
        "try:\n    raise StorageError('bucket missing')\n"
        "except StorageError as error:\n    raise RuntimeError('cannot save') from error\n"
    )
    failure = run(tmp_path, "train.py").failure
    assert failure is not None
    assert failure.reason is Reason.STORAGE
    assert "direct cause" in failure.traceback
    assert failure.where == "train.py:5"


def test_a_syntax_error(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("x = 1\nif True\n")
    ran = run(tmp_path, "train.py")
    assert (ran.status, ran.err) == (1, "")
    assert ran.failure is not None
    assert ran.failure.where == "train.py:2"
    assert ran.failure.message.startswith("SyntaxError")


@pytest.mark.parametrize(
    ("leave", "status", "err", "message"),
    [
        ("sys.exit()", 0, "", None),
        ("sys.exit(0)", 0, "", None),
        ("sys.exit(3)", 3, "", "the script left with exit status 3"),
        ("sys.exit(2)", 2, "", "the script left with exit status 2"),
        ("sys.exit('no data')", 1, "no data\n", "no data"),
        ("from everstep.errors import Stopped; raise Stopped", EXIT_STOPPED, "", None),
        ("raise KeyboardInterrupt", 130, "", "KeyboardInterrupt"),
    ],
)
def test_exit_statuses_are_kept(tmp_path: Path, leave: str, status: int, err: str, message: str | None) -> None:
    (tmp_path / "train.py").write_text(f"import sys\n{leave}\n")
    ran = run(tmp_path, "train.py")
    assert (ran.status, ran.err) == (status, err)
    assert (ran.failure.message if ran.failure else None) == message


@pytest.mark.parametrize(
    ("script", "retryable"),
    [
        ("import not_installed", False),
        ("from os import no_such_name", False),
        ("def train(:", False),
        ("import argparse; argparse.ArgumentParser().parse_args(['--no-such-flag'])", False),
        ("raise SystemExit(2)", True),
        ("raise KeyError('x')", True),
    ],
)
def test_what_no_restart_can_help_is_told_apart(tmp_path: Path, script: str, retryable: bool) -> None:
    (tmp_path / "train.py").write_text(script)
    failure = run(tmp_path, "train.py").failure
    assert failure is not None
    assert failure.reason.retryable is retryable


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.py"], "cannot run missing.py: No such file or directory"),
        (["-m", "missing"], "no module named missing"),
        (["-m", "missing.sub"], "no module named missing.sub"),
        (["-m", "os.path.sub"], "no module named os.path.sub"),
        (["--no-python", "missing-program"], "command missing-program: not found"),
        (["--no-python", "./data.txt"], "command ./data.txt: cannot run it: Permission denied"),
    ],
    ids=lambda words: "-".join(words) if isinstance(words, list) else "",
)
def test_nothing_to_run(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "data.txt").write_text("data")
    ran = run(tmp_path, *words)
    assert (ran.status, ran.err) == (127, "")
    assert ran.failure is not None
    assert ran.failure.reason is Reason.COMMAND_NOT_FOUND
    assert not ran.failure.reason.retryable
    assert says in ran.failure.message


def test_a_module_whose_import_fails_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("import not_installed")
    (tmp_path / "pack" / "train.py").write_text("")
    failure = run(tmp_path, "-m", "pack.train").failure
    assert failure is not None
    assert failure.reason is Reason.CONFIGURATION
    assert "not_installed" in failure.message


def test_a_program_runs_in_place(tmp_path: Path) -> None:
    ran = run(tmp_path, "--no-python", "sh", "-c", "echo $0 $1; exit 3", "a", "b")
    assert (ran.status, ran.out, ran.failure) == (3, "a b\n", None)


def test_a_worker_whose_launcher_is_gone_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('running')")
    ran = run(tmp_path, "train.py", parent=1)
    assert (ran.status, ran.out) == (137, "")


def test_a_script_that_raised_cannot_hang_at_its_exit(tmp_path: Path) -> None:
    """The peers sit in a collective with it. (The patience is shortened here: ten seconds are long in a test.)"""
    # One frame above the script stands the bootstrap.
    (tmp_path / "train.py").write_text(
        "import sys, threading\n"
        "sys._getframe(1).f_globals['EXIT_SECONDS'] = 0.2\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "raise ValueError('boom')\n"
    )
    ran = run(tmp_path, "train.py")
    assert ran.status == 1
    assert ran.failure is not None
