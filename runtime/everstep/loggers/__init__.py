"""Where logged values go. Only rank 0's loggers are called. Back ends are imported when they are first used."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from everstep.errors import ConfigurationError
from everstep.lazy import names_of
from everstep.loggers.base import Logger, rank_zero_experiment

if TYPE_CHECKING:
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
    "loggers_of",
    "rank_zero_experiment",
]

__getattr__ = names_of(
    __name__,
    {
        "CSVLogger": "csv",
        "DummyLogger": "dummy",
        "MLFlowLogger": "mlflow",
        "TensorBoardLogger": "tensorboard",
        "WandbLogger": "wandb",
    },
)


def loggers_of(logger: Logger | Iterable[Logger] | bool, root: Path) -> list[Logger]:
    """What `Trainer(logger=…)` means. `root`: the folder of the default one.

    Raises:
        ConfigurationError: one of them is no Logger.
    """
    if logger is True:
        from everstep.loggers.csv import CSVLogger

        return [CSVLogger(root)]
    if logger is False:
        return []
    given = [logger] if isinstance(logger, Logger | str) or not isinstance(logger, Iterable) else list(logger)
    for one in given:
        if not isinstance(one, Logger):
            raise ConfigurationError(
                f"logger={one!r}: give True, False or a Logger of everstep.loggers, such as TensorBoardLogger(), or a "
                "list of such"
            )
    return given
