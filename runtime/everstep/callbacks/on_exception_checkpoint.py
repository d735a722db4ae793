"""OnExceptionCheckpoint: a `.ckpt` of the moment at which a fit failed."""

from typing import TYPE_CHECKING

from everstep.callbacks.model_checkpoint import Checkpoint
from everstep.checkpoint import ckpt

if TYPE_CHECKING:
    import os

    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Args:
    dirpath: folder or URL.
    filename: without the extension.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: "str | os.PathLike[str]", filename: str = "on_exception") -> None:
        self.dirpath = ckpt.as_place(dirpath)
        self.filename = filename

    @property
    def ckpt_path(self) -> str:
        """Where the file is written: a path or URL."""
        return ckpt.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        if trainer.fitting:
            trainer.save_checkpoint(self.ckpt_path)
            trainer.print(f"everstep: {type(exception).__name__} was raised; saved {self.ckpt_path}")
