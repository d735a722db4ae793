"""What listens to the loop. `Callback` has every hook as a no-op; the hooks are listed in trainer/hooks.py."""

from everstep.callbacks.base import Callback
from everstep.callbacks.early_stopping import EarlyStopping
from everstep.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from everstep.callbacks.lambda_callback import LambdaCallback
from everstep.callbacks.learning_rate_monitor import LearningRateMonitor
from everstep.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
from everstep.callbacks.model_summary import ModelSummary
from everstep.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from everstep.callbacks.prediction_writer import BasePredictionWriter
from everstep.callbacks.progress import ProgressBar
from everstep.callbacks.rich_model_summary import RichModelSummary
from everstep.callbacks.rich_progress_bar import RichProgressBar
from everstep.callbacks.timer import Timer
from everstep.callbacks.tqdm_progress_bar import TQDMProgressBar

__all__ = [
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "Timer",
]
