"""What `accelerator`, `devices`, `num_nodes`, `strategy` and `precision` mean together, in a certain environment."""

import sys
from collections.abc import Sequence
from typing import Any

from everstep.accelerators import Accelerator, choose_accelerator
from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.precision import Precision, choose_precision
from everstep.strategies import ParallelStrategy, Strategy, choose_strategy


def place(
    environment: Environment,
    accelerator: str | Accelerator = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    precision: int | str | Precision | None = None,
    plugins: Any = None,
) -> Strategy:
    """The strategy, with accelerator, devices and precision, for this process.

    Args:
        plugins: a Precision or a Strategy, or a list of such, as another way to give them.

    Raises:
        ConfigurationError: one of them is unknown, or they do not fit each other or what was started.
    """
    for plugin in plugins if isinstance(plugins, list | tuple) else [plugins] if plugins is not None else []:
        if isinstance(plugin, Precision):
            precision = plugin
        elif isinstance(plugin, Strategy):
            strategy = plugin
        else:
            raise ConfigurationError(
                f"plugins has a {type(plugin).__name__}: give a Precision or a Strategy. Environments are "
                "recognised, and where checkpoints go is said by checkpoint.uri"
            )
    device = choose_accelerator(accelerator)
    launched = environment.launched
    if devices == "auto" and launched:
        indices = device.parse(environment.local_world_size)
    else:
        indices = device.parse(devices)
    if launched and len(indices) != environment.local_world_size:
        raise ConfigurationError(
            f"devices={devices!r}, but {environment.local_world_size} ranks were started on this node: give "
            f'devices="auto", or start {len(indices)} (`everstep launch --nproc-per-node {len(indices)}`)'
        )
    if num_nodes not in (1, environment.num_nodes):
        raise ConfigurationError(
            f"num_nodes={num_nodes}, but "
            + (
                f"the ranks were started on {environment.num_nodes}: leave num_nodes away, the launcher knows it"
                if launched
                else f"this script was started alone: start it on each with `everstep launch --nnodes {num_nodes} …`"
            )
        )
    ranks = environment.world_size if launched else len(indices)
    chosen = choose_strategy(strategy, ranks)
    if isinstance(chosen, ParallelStrategy):
        if launched:
            chosen.start_method = None  # they are there
        elif ranks > 1 and chosen.start_method is None:
            # A notebook's classes are in no file that a new interpreter could read; it can only be copied.
            chosen.start_method = "fork" if hasattr(sys, "ps1") else "spawn"
    chosen.environment, chosen.accelerator, chosen.devices = environment, device, indices
    chosen.precision = choose_precision(precision, device.name)
    return chosen
