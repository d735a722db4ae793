"""Metric objects given to `self.log`: those of torchmetrics, which is not imported, and what else has their methods."""

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from everstep.strategies import Strategy


def is_metric(value: Any) -> bool:
    """Does it gather by update() and answer by compute(), as torchmetrics.Metric does?"""
    return isinstance(value, nn.Module) and all(hasattr(value, name) for name in ("update", "compute", "reset"))


def is_collection(value: Any) -> bool:
    """Is it a MetricCollection: metrics by name, updated together?"""
    return isinstance(value, nn.ModuleDict) and hasattr(value, "compute_groups")


def step_value(metric: Any) -> Tensor | None:
    """What its latest forward returned; None: it was only updated."""
    value = getattr(metric, "_forward_cache", None)
    return value.detach() if isinstance(value, Tensor) else value


def state(metric: Any) -> dict[str, Any]:
    """A copy of what it has gathered, as tensors and plain data."""
    kept = {name: _copy(value) for name, value in metric.metric_state.items()}
    count = getattr(metric, "_update_count", None)
    return kept if count is None else {**kept, "_update_count": count}


def load_state(metric: Any, saved: dict[str, Any]) -> None:
    """Take back what `state` gave."""
    if hasattr(metric, "load_metric_state"):
        metric.load_metric_state(saved)
        return
    for name, value in saved.items():
        setattr(metric, name, _copy(value, getattr(metric, "device", None)))
    metric._computed = None


def epoch_value(metric: Any, strategy: "Strategy") -> Any:
    """compute(), over all ranks: a collective. torchmetrics does it by itself."""
    if strategy.world_size > 1 and hasattr(metric, "compute_over"):
        return metric.compute_over(partial(strategy.reduce, reduce_op="sum"))
    if getattr(metric, "_update_count", 1):
        return metric.compute()
    with warnings.catch_warnings():  # a rank may have had no batch of a small evaluation
        warnings.filterwarnings("ignore", message=".*compute.*method of metric", category=UserWarning)
        return metric.compute()


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True) if device is not None else value.detach().clone()
    if isinstance(value, list):
        return [_copy(item, device) for item in value]
    return value
