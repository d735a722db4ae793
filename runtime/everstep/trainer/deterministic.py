"""Which algorithms torch may choose."""

import os
import warnings
from typing import Literal

import torch


def choose_algorithms(deterministic: bool | Literal["warn"] | None, benchmark: bool | None) -> None:
    """As the Trainer's arguments say; None leaves torch as it is set."""
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        # cuBLAS sums in a fixed order only with a workspace of its own.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if benchmark:
            warnings.warn(
                "deterministic and benchmark are both on, but algorithms that are chosen by trying differ from run "
                "to run: benchmark stays off",
                stacklevel=3,
            )
        benchmark = False
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark
