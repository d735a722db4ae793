"""Why a worker, a pod or a run ended: the vocabulary of exits, and the record that carries one."""

from dataclasses import dataclass
from enum import StrEnum

#: Exit status of a worker or launcher that stopped at the agreed step after saving (preemption, suspend, Ctrl-C).
EXIT_STOPPED = 85


class Reason(StrEnum):
    """Classified in the process that died wherever it could still speak, else by its launcher."""

    OUT_OF_MEMORY = "OutOfMemory"
    NON_FINITE_LOSS = "NonFiniteLoss"
    COMMUNICATION = "Communication"  # NCCL, gloo, store: mostly the echo of another rank's death
    DATA = "Data"  # a DataLoader worker or the dataset
    STORAGE = "Storage"  # the checkpoint store
    USER_EXCEPTION = "UserException"
    COMMAND_NOT_FOUND = "CommandNotFound"  # no restart can help
    CONFIGURATION = "Configuration"  # refused by everstep, a module that is missing …: no restart can help
    KILLED = "Killed"  # by a signal that nobody of us sent
    NODE_LOST = "NodeLost"  # the launcher stopped talking
    PREEMPTED = "Preempted"
    UNKNOWN = "Unknown"

    @property
    def retryable(self) -> bool:
        return self not in (Reason.COMMAND_NOT_FOUND, Reason.CONFIGURATION)


@dataclass(frozen=True)
class Failure:
    """One rank's death, as the termination message and the coordinator's record tell it."""

    reason: Reason
    message: str  # one line, for status and table
    node: int = -1
    rank: int = -1  # global rank; -1: not known or not a rank
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    step: int = 0  # last step that this rank had entered
    generation: int = 0
    where: str = ""  # file:line of the raising frame, if an exception
    traceback: str = ""  # at most TRACEBACK_LIMIT characters, the end kept
    last_lines: tuple[str, ...] = ()  # what the rank printed last: at most LAST_LINES of them

    @property
    def fingerprint(self) -> str:
        """Equal for two failures that are the same bug: numbers in messages differ, places do not."""
        return f"{self.reason}|{self.where}|{self.exit_code}|{self.signal}"


TRACEBACK_LIMIT = 8_000
#: Lines of a rank's output that go with its failure, and characters of each.
LAST_LINES = 10
LINE_LIMIT = 200
