"""The bootstrap of a worker process: `python -P -m everstep.launch.worker --parent=PID [-m | --no-python] target args…`

Runs the user's script as `python script.py` would: as `__main__`, with its sys.argv and sys.path[0], so that pickling,
multiprocessing's spawn and DataLoader workers find what they expect. If it raises, the exception is classified and
left in the failure file; nothing is printed here: the launcher that holds the run's root cause prints that one, once.
"""

import atexit
import contextlib
import errno
import importlib.abc
import importlib.util
import os
import runpy
import sys
import threading
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

from everstep.launch.classify import failure_of
from everstep.launch.processes import die_with_parent
from everstep_protocol import codec, env
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason

#: A script that raised may hang in its own clean-up while its peers hang in a collective with it.
EXIT_SECONDS = 10.0
_NOT_STARTED = 127


class _CannotStart(Exception):
    """There is nothing to run; the message says what is missing."""


def main() -> int:
    """Run what the command line names. Returns the exit status; does not return for programs."""
    parent, kind, argv = _arguments(sys.argv[1:])
    die_with_parent(parent)
    try:
        if kind == "program":
            _run_program(argv)
        elif kind == "module":
            _run_module(argv)
        else:
            _run_script(argv)
    except _CannotStart as error:
        _leave(Failure(Reason.COMMAND_NOT_FOUND, str(error), exit_code=_NOT_STARTED))
        return _NOT_STARTED
    except SystemExit as leaving:
        return _status_of(leaving)
    except KeyboardInterrupt as error:
        _leave(failure_of(error, __file__, argv[0], exit_code=130))
        _exit_soon(130)
        return 130
    except BaseException as error:
        _leave(failure_of(error, __file__, argv[0] if kind == "script" else None))
        _exit_soon(1)
        return 1
    return 0


def _arguments(words: list[str]) -> tuple[int, str, list[str]]:
    parent = int(words.pop(0).partition("=")[2])
    kind = {"-m": "module", "--no-python": "program"}.get(words[0], "script")
    return parent, kind, words if kind == "script" else words[1:]


def _run_script(argv: list[str]) -> None:
    path = Path(argv[0])
    sys.argv[:] = argv
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        runpy.run_path(argv[0], run_name="__main__")  # adds it to sys.path itself
        return
    try:
        source = path.read_bytes()
    except OSError as error:
        raise _CannotStart(f"cannot run {argv[0]}: {error.strerror} (in {Path.cwd()})") from None
    _insert_path(str(path.resolve().parent))
    file = str(path.absolute())
    loader = SourceFileLoader("__main__", file)
    _execute(loader.source_to_code(source, file), __file__=file, __cached__=None, __loader__=loader)


def _run_module(argv: list[str]) -> None:
    name = argv[0]
    sys.argv[:] = argv
    _insert_path(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:  # a package: its __main__
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the package is there, but importing it failed
        spec = None
    code = spec.loader.get_code(spec.name) if spec and isinstance(spec.loader, importlib.abc.InspectLoader) else None
    if spec is None or code is None:
        raise _CannotStart(f"no module named {name} that could be run (sys.path[0] is {sys.path[0]})")
    sys.argv[0] = spec.origin or name
    attributes = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": spec.loader}
    _execute(code, __spec__=spec, __package__=spec.parent, **attributes)


def _run_program(argv: list[str]) -> None:
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR):
            raise
        what = "not found" if error.errno in (errno.ENOENT, errno.ENOTDIR) else f"cannot run it: {error.strerror}"
        raise _CannotStart(f"command {argv[0]}: {what} (PATH is {os.environ.get('PATH', '')})") from None


def _insert_path(folder: str) -> None:
    """What the interpreter itself would have put at the front, unless the user has forbidden it."""
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, folder)


def _execute(code: CodeType, **attributes: Any) -> None:
    """Run code as the main module. It stays in sys.modules: threads and exit handlers outlive the last line."""
    module = ModuleType("__main__")
    module.__dict__.update({"__builtins__": __builtins__, "__spec__": None, "__package__": None, **attributes})
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _status_of(leaving: SystemExit) -> int:
    """The exit status that the interpreter would have made of it; anything but 0 and a stop is a failure."""
    code = leaving.code
    if code is None or code == 0:
        return 0
    if isinstance(code, int):
        status, message = code & 0xFF, f"the script left with exit status {code & 0xFF}"
    else:
        status, message = 1, str(code)
        print(code, file=sys.stderr)
    if status != EXIT_STOPPED:
        record = failure_of(leaving, __file__, sys.argv[0], exit_code=status)
        reason = record.reason if record.reason is Reason.CONFIGURATION else Reason.UNKNOWN
        _leave(Failure(reason, message.partition("\n")[0], exit_code=status, where=record.where))
    return status


def _leave(failure: Failure) -> None:
    """Write the record where the launcher looks for it, whole or not at all."""
    path = os.environ.get(env.FAILURE_FILE)
    if not path:
        return
    draft = f"{path}.new"
    try:
        Path(draft).write_bytes(codec.dumps(failure))
        os.replace(draft, path)
    except OSError as error:  # the launcher will still see the exit status
        print(f"everstep: cannot leave the reason of this exit in {path}: {error}", file=sys.stderr)


def _exit_soon(status: int) -> None:
    def watch() -> None:
        time.sleep(EXIT_SECONDS)
        os._exit(status)

    threading.Thread(target=watch, name="everstep-exit", daemon=True).start()


def _end(status: int) -> NoReturn:
    """Leave as the interpreter does, but for its last act: C++ libraries are not taken down.

    A thread that such a library forgot to join (torch's process groups have some) aborts the process then, now and
    then, and a rank that has done all its work would count as one that failed.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main())
