"""What a dead worker died of, as its launcher can tell: from the record it left, else from its wait status."""

import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from everstep_protocol import codec
from everstep_protocol.reasons import Failure, Reason

#: A kubelet keeps no more of a termination message, in bytes.
TERMINATION_LIMIT = 4_096


def left_record(path: Path) -> Failure | None:
    """The Failure that a worker wrote before it died, if it could still speak."""
    try:
        return codec.loads(Failure, path.read_bytes())
    except (OSError, codec.BadMessage):
        return None


def from_status(status: int, out_of_memory: bool) -> Failure:
    """A Failure from a wait status. `out_of_memory`: the kernel has killed in this container since the round began."""
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return Failure(Reason.UNKNOWN, f"left with exit status {code} and said nothing", exit_code=code)
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL and out_of_memory:
        message = "killed by the kernel: the container's memory limit is reached"
        return Failure(Reason.OUT_OF_MEMORY, message, signal=number)
    return Failure(Reason.KILLED, f"killed by {name}", signal=number)


def root_cause(failures: Iterable[Failure]) -> Failure | None:
    """Of several, earliest first, the one that explains the others: broken communication is mostly an echo."""
    found = list(failures)
    return next((f for f in found if f.reason is not Reason.COMMUNICATION), found[0] if found else None)


def sentence(failure: Failure) -> str:
    """`rank 1 (node 0, pid 4711) failed at step 3: UserException: ValueError: … (train.py:12)`"""
    who = f"rank {failure.rank} (node {failure.node}, pid {failure.pid})" if failure.rank >= 0 else "the launcher"
    step = f" at step {failure.step}" if failure.step else ""
    where = f" ({failure.where})" if failure.where else ""
    return f"{who} failed{step}: {failure.reason}: {failure.message}{where}"


def last_words(failure: Failure) -> bytes:
    """The termination message: as much of the failure as fits. Half a JSON would say nothing at all."""
    text = codec.dumps(failure)
    while len(text) > TERMINATION_LIMIT and (failure.traceback or failure.last_lines):
        if failure.traceback:  # its end names the place; the log has all of it
            lines = failure.traceback.splitlines(keepends=True)
            failure = replace(failure, traceback="".join(lines[max(1, len(lines) // 4) :]))
        else:
            failure = replace(failure, last_lines=failure.last_lines[1:])
        text = codec.dumps(failure)
    return text if len(text) <= TERMINATION_LIMIT else codec.dumps(replace(failure, message=failure.message[:300]))


def oom_kills(cgroup: Path = Path("/sys/fs/cgroup/memory.events")) -> int:
    """How often the kernel has killed in this container for want of memory (cgroup v2); 0 where that is not told."""
    try:
        counts = dict(line.split() for line in cgroup.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
