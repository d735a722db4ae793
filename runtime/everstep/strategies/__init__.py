"""How a module trains on the ranks there are. The base class is one device, and works."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from everstep.errors import ConfigurationError
from everstep.strategies.base import Strategy
from everstep.strategies.ddp import DDPStrategy
from everstep.strategies.deepspeed import DeepSpeedStrategy
from everstep.strategies.fsdp import FSDPStrategy
from everstep.strategies.model_parallel import ModelParallelStrategy
from everstep.strategies.parallel import ParallelStrategy

__all__ = [
    "DDPStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "Strategy",
    "choose_strategy",
]

_DDP = {
    f"{name}{suffix}": partial(DDPStrategy, find_unused_parameters=unused, start_method=start)
    for name, start in {"ddp": None, "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}.items()
    for suffix, unused in {
        "": False, "_find_unused_parameters_true": True, "_find_unused_parameters_false": False
    }.items()
}  # fmt: skip
_KINDS: dict[str, Callable[[], Strategy]] = {
    "single_device": Strategy,
    **_DDP,
    "fsdp": FSDPStrategy,
    "fsdp_cpu_offload": partial(FSDPStrategy, cpu_offload=True),
    "model_parallel": ModelParallelStrategy,
    "deepspeed": DeepSpeedStrategy,
    **{f"deepspeed_stage_{stage}": partial(DeepSpeedStrategy, stage) for stage in (1, 2, 3)},
    **{f"deepspeed_stage_{stage}_offload": partial(DeepSpeedStrategy, stage, True, stage == 3) for stage in (1, 2, 3)},
}
_GONE = {
    "dp": 'torch\'s DataParallel is slower than "ddp", which takes its place',
    "ddp2": '"ddp" takes its place',
    "ddp_sharded": '"fsdp" takes its place',
    "fsdp_native": '"fsdp" takes its place',
    "horovod": '"ddp" takes its place',
    "bagua": '"ddp" takes its place',
    "xla": 'give accelerator="tpu" and strategy="auto"',
    "tpu_spawn": 'give accelerator="tpu" and strategy="auto"',
}


def choose_strategy(asked: str | Strategy = "auto", ranks: int = 1) -> Strategy:
    """What `strategy=` means for so many ranks: "auto" (DDP if there are several), a name, or a Strategy.

    Raises:
        ConfigurationError: the name is unknown, or it is a single device's and there are several ranks.
    """
    if isinstance(asked, Strategy):
        chosen = asked
    elif asked == "auto":
        chosen = DDPStrategy() if ranks > 1 else Strategy()
    elif asked in _KINDS:
        chosen = _KINDS[asked]()
    else:
        near = get_close_matches(str(asked), _KINDS, 1)
        hint = _GONE.get(str(asked)) or (f"did you mean {near[0]!r}?" if near else "there is no such strategy")
        names = [name for name in _KINDS if "_find_unused" not in name]
        raise ConfigurationError(f'strategy={asked!r}: {hint} (known: "auto", {", ".join(names)}, or a Strategy)')
    if ranks > 1 and type(chosen) is Strategy:
        raise ConfigurationError(f'one device cannot train on {ranks} ranks together: give strategy="ddp"')
    return chosen
