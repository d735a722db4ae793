"""The real Lightning, to compare with. torchvision's wheel for Linux does not go with a CPU build of torch: the two
operators that it misses are declared first."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch

_kept = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # something else has declared it
        _kept.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning

__all__ = ["lightning", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning says much."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
