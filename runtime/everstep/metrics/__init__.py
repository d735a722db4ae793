"""Metrics: those of torchmetrics, which is imported when the first of them is used, and `Accuracy()` without arguments.

self.accuracy = everstep.metrics.Accuracy()
self.f1 = everstep.metrics.F1Score(task="multiclass", num_classes=10)
class Mine(everstep.metrics.Metric): …
"""

from typing import Any

from everstep.metrics.accuracy import Accuracy

__all__ = ["Accuracy"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import torchmetrics

    try:
        return getattr(torchmetrics, name)
    except AttributeError:
        raise AttributeError(
            f"neither everstep.metrics nor torchmetrics {torchmetrics.__version__} has {name!r}"
        ) from None


def __dir__() -> list[str]:
    import torchmetrics

    return sorted({*__all__, *torchmetrics.__all__})
