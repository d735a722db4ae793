"""Where logged values go. Only rank 0's loggers are called. Back ends are imported when they are first used."""

from typing import TYPE_CHECKING

from everstep.lazy import names_of

if TYPE_CHECKING:
    from everstep.loggers.base import Logger, rank_zero_experiment
    from everstep.loggers.csv import CSVLogger
    from everstep.loggers.dummy import DummyLogger
    from everstep.loggers.mlflow import MLFlowLogger
    from everstep.loggers.tensorboard import TensorBoardLogger
    from everstep.loggers.wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "DummyLogger",
    "Logger",
    "MLFlowLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "rank_zero_experiment",
]

__getattr__ = names_of(
    __name__,
    {
        "CSVLogger": "csv",
        "DummyLogger": "dummy",
        "Logger": "base",
        "MLFlowLogger": "mlflow",
        "TensorBoardLogger": "tensorboard",
        "WandbLogger": "wandb",
        "rank_zero_experiment": "base",
    },
)
