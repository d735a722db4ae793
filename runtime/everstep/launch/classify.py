"""Why did the user's script raise? Decided in the process that dies, from types and messages, importing nothing heavy.

Names of types are compared instead of types: a script that never imported torch must not import it in order to die.
"""

import errno
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

from everstep.errors import EverstepError
from everstep_protocol.reasons import TRACEBACK_LIMIT, Failure, Reason

MESSAGE_LIMIT = 500
#: Of our own sentences, which end with what to do.
OWN_MESSAGE_LIMIT = 1200

# What torch says through plain RuntimeErrors. Checked in this order, on the message.
_MESSAGES: tuple[tuple[Reason, re.Pattern[str]], ...] = (
    (Reason.OUT_OF_MEMORY, re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory")),
    (Reason.DATA, re.compile(r"DataLoader worker|in pin memory thread")),
    (Reason.NON_FINITE_LOSS, re.compile(r"returned nan values in its \d+th output")),
    (
        Reason.COMMUNICATION,
        re.compile(
            r"gloo|NCCL|ncclUnhandled|ProcessGroup|TCPStore|c10d|store->|Connection closed by peer|"
            r"Connection reset by peer|Socket Timeout|Broken pipe|wait timeout after|Timed out waiting .* (recv|send)",
            re.IGNORECASE,
        ),
    ),
)
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
_TORCH_COMMUNICATION = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}


def reason_of(error: BaseException) -> Reason:
    """The reason of an exception, or of the one that it was explicitly raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        reason = _reason_of_one(current)
        if reason is not Reason.USER_EXCEPTION:
            return reason
        current = current.__cause__
    return Reason.USER_EXCEPTION


def _reason_of_one(error: BaseException) -> Reason:
    if isinstance(error, EverstepError):
        return error.reason
    if _is_the_same_next_time(error):
        return Reason.CONFIGURATION
    kinds = type(error).__mro__
    names = {kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] == "torch"}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return Reason.OUT_OF_MEMORY
    if names & _TORCH_COMMUNICATION:
        return Reason.COMMUNICATION
    if any(kind.__module__.partition(".")[0] == "obstore" for kind in kinds):
        return Reason.STORAGE
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return Reason.OUT_OF_MEMORY
        if error.errno in _STORAGE_ERRNOS:
            return Reason.STORAGE
    text = str(error)
    if text.startswith("Caught ") and "DataLoader worker" in text:  # a dataset's own exception, with its own type
        return Reason.DATA
    if isinstance(error, RuntimeError):
        for reason, pattern in _MESSAGES:
            if pattern.search(text):
                return reason
    if isinstance(error, KeyboardInterrupt):
        return Reason.KILLED
    return Reason.USER_EXCEPTION


def _is_the_same_next_time(error: BaseException) -> bool:
    """The script does not parse, a module or a name in one is not installed, or argparse refused the command line.

    A shared library that cannot be loaded is an ImportError as well, but may be one node's fault.
    """
    if isinstance(error, SystemExit):
        frames = traceback.extract_tb(error.__traceback__)
        return error.code == 2 and bool(frames) and Path(frames[-1].filename).name == "argparse.py"
    missing = isinstance(error, ModuleNotFoundError) or (
        isinstance(error, ImportError) and str(error).startswith("cannot import name")
    )
    return missing or isinstance(error, SyntaxError)


def one_line(error: BaseException) -> str:
    """`ValueError: what was wrong`, without the rest of a long message; our own errors are sentences by themselves."""
    name = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return name
    if isinstance(error, EverstepError):
        return " ".join(lines)[:OWN_MESSAGE_LIMIT]
    if "Original Traceback" in str(error):  # raised in a DataLoader worker: the last line is the real message
        return f"{lines[-1]} (in a DataLoader worker)"[:MESSAGE_LIMIT]
    return f"{name}: {lines[0]}"[:MESSAGE_LIMIT]


def failure_of(error: BaseException, hide: str, script: str | None, exit_code: int = 1) -> Failure:
    """The record of a script that raised.

    Args:
        error: what it raised, with its traceback.
        hide: file of the bootstrap, whose frames are nobody's business.
        script: the user's file, for `where`; None if a module or program was run.
    """
    visible = _after(error.__traceback__, hide)
    text = "".join(traceback.format_exception(type(error), error, visible))
    return Failure(
        reason=reason_of(error),
        message=one_line(error),
        exit_code=exit_code,
        where=_where(error, visible, script),
        # A traceback is for bugs in the user's code. What we refuse, we say in the message; `where` names their line.
        traceback="" if isinstance(error, EverstepError) else shorten(text),
    )


def shorten(text: str) -> str:
    """The end of a long traceback: the place and the message are there."""
    if len(text) <= TRACEBACK_LIMIT:
        return text
    mark = "… (cut)\n"
    return mark + text[-(TRACEBACK_LIMIT - len(mark)) :]


def _after(frames: TracebackType | None, hide: str) -> TracebackType | None:
    """The traceback from below the bootstrap's last frame."""
    start, current = frames, frames
    while current is not None:
        name = current.tb_frame.f_code.co_filename
        if name == hide or name.startswith("<frozen "):
            start = current.tb_next
        elif start is current:
            break
        current = current.tb_next
    return start


def _where(error: BaseException, frames: TracebackType | None, script: str | None) -> str:
    """file:line of the user's code that was running: the last frame in the script's folder, else the last of all."""
    places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(frames)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 0))
    if not places:
        return ""
    home = Path(script).resolve().parent if script else Path.cwd()
    installed = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
    mine = [(name, line) for name, line in places if _is_below(name, home) and not name.startswith(installed)]
    name, line = (mine or places)[-1]
    return f"{Path(name).resolve().relative_to(home) if _is_below(name, home) else Path(name).name}:{line}"


def _is_below(name: str, folder: Path) -> bool:
    return Path(name).resolve().is_relative_to(folder)
