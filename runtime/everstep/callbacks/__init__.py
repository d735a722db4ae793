"""What listens to the loop. `Callback` has every hook as a no-op; the hooks are listed in trainer/hooks.py."""

from everstep.callbacks.base import Callback
from everstep.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from everstep.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from everstep.callbacks.progress import ProgressBar

__all__ = ["Callback", "Checkpoint", "ModelCheckpoint", "OnExceptionCheckpoint", "ProgressBar"]
