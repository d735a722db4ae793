"""How many workers fit this machine, for --nproc-per-node by name. No torch: the launcher stays small and quick."""

import ctypes
import os
from collections.abc import Mapping


def count_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def count_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA devices that a worker would see: those that the driver knows, less what CUDA_VISIBLE_DEVICES hides."""
    known = _driver_count()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return known
    count = 0
    for name in visible.split(","):
        name = name.strip()
        # As CUDA reads it: the first name that is no device ends the list.
        if not name or (name.lstrip("-").isdigit() and not 0 <= int(name) < known):
            break
        count += 1
    return min(count, known)


def _driver_count() -> int:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if library.nvmlInit_v2() != 0:
        return 0
    try:
        count = ctypes.c_uint(0)
        return count.value if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0
    finally:
        library.nvmlShutdown()
