"""Exceptions that mean something to the rest of Everstep: each names the reason with which its rank is reported."""

from typing import ClassVar

from everstep_protocol.reasons import EXIT_STOPPED, Reason


class EverstepError(Exception):
    """Raised by Everstep itself; the message says what is wrong and what to do."""

    reason: ClassVar[Reason] = Reason.UNKNOWN


class ConfigurationError(EverstepError):
    """What was asked for cannot work, and a restart would not change it: the run fails at once."""

    reason = Reason.CONFIGURATION


class StorageError(EverstepError):
    """The checkpoint store cannot be reached, refuses, or holds nothing usable."""

    reason = Reason.STORAGE


class StorageRefusedError(StorageError):
    """The store answers and says no (credentials, rights, bucket), or all that it holds is damaged.

    A training that is on its way goes on; for one that begins, no restart helps.
    """

    reason = Reason.CONFIGURATION


class NonFiniteLossError(EverstepError):
    """The loss is NaN or infinite."""

    reason = Reason.NON_FINITE_LOSS


class Stopped(SystemExit):
    """Everything is saved at the agreed step: leave the script. Exits with EXIT_STOPPED unless somebody catches it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(EXIT_STOPPED)
        self.message = message
