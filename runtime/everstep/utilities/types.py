"""Names for annotations."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
OptimizerLRScheduler = Any
LRSchedulerTypeUnion = Any
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
