"""Where logged values go. Only rank 0's loggers are called. Back ends are imported when they are first used."""

from everstep.loggers.base import Logger
from everstep.loggers.csv import CSVLogger
from everstep.loggers.dummy import DummyLogger
from everstep.loggers.mlflow import MLFlowLogger
from everstep.loggers.tensorboard import TensorBoardLogger
from everstep.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"]
