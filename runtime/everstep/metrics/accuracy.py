"""`Accuracy()` as it was spelled before torchmetrics asked for a task: what is compared shows in what it is given."""

from typing import Any

import torch
from torch import Tensor, nn


class Accuracy(nn.Module):
    """The part of predictions that are right; without arguments, the task is that of the first `(preds, target)`:

    | preds | target | compared |
    |---|---|---|
    | scores (N, C, …) | labels (N, …) | the class with the highest score |
    | labels (N, …) | labels (N, …) | labels |
    | scores (N, …), floating point | 0 or 1, (N, …) | score ≥ 0.5, or of logits (outside of 0 … 1) their sigmoid |

    Every target counts the same, so it is sklearn's accuracy_score whatever the classes of a batch are. With arguments
    (`task="multiclass", num_classes=10`) it is torchmetrics' Accuracy.

    `accuracy(preds, target)` returns that of the batch, as a tensor on its device; `compute()` that of all since
    `reset()`. For more (top k, averages by class, ignored labels) take torchmetrics'.
    """

    __jit_unused_properties__ = ("metric_state",)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            import torchmetrics

            return torchmetrics.Accuracy(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self) -> None:
        super().__init__()
        self.task: str | None = None
        self.total = 0  # targets seen; known without asking the device
        self.correct = torch.zeros((), dtype=torch.long)  # no buffer: DDP gives all ranks those of rank 0
        self._forward_cache: Tensor | None = None

    def forward(self, preds: Tensor, target: Tensor) -> Tensor:
        before = self.correct.to(preds.device)
        self.update(preds, target)
        batch: Tensor = (self.correct - before) / target.numel()
        self._forward_cache = batch
        return batch

    def update(self, preds: Tensor, target: Tensor) -> None:
        """
        Raises:
            ValueError: the shapes do not go together, or are of another task than those before.
        """
        task = _task(preds, target)
        if self.task is None:
            self.task = task
        elif task != self.task:
            raise ValueError(f"Accuracy began with {self.task} predictions and now gets {task}: take one for each")
        if task == "multiclass":
            preds = preds.argmax(1)
        elif task == "binary":
            preds = _probability(preds) >= 0.5
        correct = (preds == target).sum()
        # Not in place: a forward may run under inference_mode, and what it has made must live on outside.
        self.correct = self.correct.to(correct.device) + correct
        self.total += target.numel()

    def compute(self) -> Tensor:
        """Over all that this rank has seen; NaN if that is nothing."""
        return self.correct / self.total if self.total else torch.full((), torch.nan, device=self.correct.device)

    def reset(self) -> None:
        """Forget what was gathered."""
        self.correct = torch.zeros_like(self.correct)
        self.total = 0
        self._forward_cache = None

    # What a log does with it: over the ranks, and for checkpoints.

    @property
    def metric_state(self) -> dict[str, Any]:
        """What was gathered, for checkpoints: tensors and plain data."""
        return {"correct": self.correct, "total": self.total, "task": self.task}

    def load_metric_state(self, state: dict[str, Any]) -> None:
        """Take back what `metric_state` gave."""
        self.correct = state["correct"].to(self.correct.device)
        self.total, self.task = state["total"], state["task"]

    def compute_over(self, reduce: Any) -> Tensor:
        """Over all ranks. `reduce`: sums a tensor over them, a collective."""
        both: Tensor = reduce(torch.stack([self.correct, self.correct.new_tensor(self.total)]))
        return both[0] / both[1]


def _task(preds: Tensor, target: Tensor) -> str:
    if target.is_floating_point():
        raise ValueError("Accuracy compares with labels: target has to be whole numbers, not floating point")
    if preds.shape == target.shape:
        return "binary" if preds.is_floating_point() else "labels"
    if (
        preds.ndim == target.ndim + 1
        and preds.shape[:1] + preds.shape[2:] == target.shape
        and preds.is_floating_point()
    ):
        return "multiclass"
    raise ValueError(
        f"Accuracy got preds of shape {tuple(preds.shape)} and target of shape {tuple(target.shape)}: give labels or "
        "scores of the target's shape, or scores (N, C, …) for a target (N, …)"
    )


def _probability(scores: Tensor) -> Tensor:
    inside = ((scores >= 0) & (scores <= 1)).all()  # stays on the device
    return torch.where(inside, scores, scores.sigmoid())
