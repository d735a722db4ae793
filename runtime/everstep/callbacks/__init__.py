"""What listens to the loop. `Callback` has every hook as a no-op; the hooks are listed in trainer/hooks.py."""

from typing import TYPE_CHECKING

from everstep.lazy import names_of

if TYPE_CHECKING:
    from everstep.callbacks.base import Callback
    from everstep.callbacks.device_stats_monitor import DeviceStatsMonitor
    from everstep.callbacks.early_stopping import EarlyStopping
    from everstep.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from everstep.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from everstep.callbacks.gradient_norm_monitor import GradientNormMonitor
    from everstep.callbacks.lambda_callback import LambdaCallback
    from everstep.callbacks.learning_rate_monitor import LearningRateMonitor
    from everstep.callbacks.model_checkpoint import Checkpoint, ModelCheckpoint
    from everstep.callbacks.model_summary import ModelSummary
    from everstep.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
    from everstep.callbacks.prediction_writer import BasePredictionWriter
    from everstep.callbacks.progress import ProgressBar
    from everstep.callbacks.rich_model_summary import RichModelSummary
    from everstep.callbacks.rich_progress_bar import RichProgressBar, RichProgressBarTheme
    from everstep.callbacks.spike_detection import SpikeDetection
    from everstep.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
    from everstep.callbacks.throughput_monitor import ThroughputMonitor
    from everstep.callbacks.timer import Timer
    from everstep.callbacks.tqdm_progress_bar import TQDMProgressBar
    from everstep.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "GradientNormMonitor",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

__getattr__ = names_of(
    __name__,
    {
        "BackboneFinetuning": "finetuning",
        "BaseFinetuning": "finetuning",
        "BasePredictionWriter": "prediction_writer",
        "Callback": "base",
        "Checkpoint": "model_checkpoint",
        "DeviceStatsMonitor": "device_stats_monitor",
        "EMAWeightAveraging": "weight_averaging",
        "EarlyStopping": "early_stopping",
        "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
        "GradientNormMonitor": "gradient_norm_monitor",
        "LambdaCallback": "lambda_callback",
        "LearningRateMonitor": "learning_rate_monitor",
        "ModelCheckpoint": "model_checkpoint",
        "ModelSummary": "model_summary",
        "OnExceptionCheckpoint": "on_exception_checkpoint",
        "ProgressBar": "progress",
        "RichModelSummary": "rich_model_summary",
        "RichProgressBar": "rich_progress_bar",
        "RichProgressBarTheme": "rich_progress_bar",
        "SpikeDetection": "spike_detection",
        "StochasticWeightAveraging": "stochastic_weight_averaging",
        "TQDMProgressBar": "tqdm_progress_bar",
        "ThroughputMonitor": "throughput_monitor",
        "Timer": "timer",
        "WeightAveraging": "weight_averaging",
    },
)
