"""How many DataLoader workers make sense."""

import os


def suggested_max_num_workers(local_world_size: int) -> int:
    """For each of a node's ranks, so that ranks and workers together have a CPU each; at least 1.

    Raises:
        ValueError: there is no rank.
    """
    if local_world_size < 1:
        raise ValueError(f"local_world_size is {local_world_size}: it has to be at least 1")
    return max(1, cpus() // local_world_size - 1)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
