"""Where logged values go. Only rank 0's loggers are called."""

from everstep.loggers.base import Logger
from everstep.loggers.csv import CSVLogger
from everstep.loggers.dummy import DummyLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger"]
