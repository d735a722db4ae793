"""Where tensors live. The base class is the CPU, and works."""

from everstep.accelerators.base import Accelerator
from everstep.accelerators.cpu import CPUAccelerator
from everstep.accelerators.cuda import CUDAAccelerator
from everstep.accelerators.tpu import TPUAccelerator
from everstep.errors import ConfigurationError

__all__ = ["Accelerator", "CPUAccelerator", "CUDAAccelerator", "TPUAccelerator", "choose_accelerator"]

#: In the order in which "auto" looks for one.
_KINDS: dict[str, type[Accelerator]] = {"cuda": CUDAAccelerator, "tpu": TPUAccelerator, "cpu": CPUAccelerator}
_SPELLINGS = {"gpu": "cuda"}
_GONE = {
    "ipu": "torch supports no Graphcore IPU any more",
    "hpu": "Gaudi needs Habana's own build of torch, which Everstep does not support",
    "mps": "Everstep does not support Apple's GPUs",
}


def choose_accelerator(asked: "str | Accelerator" = "auto") -> Accelerator:
    """What `accelerator=` means: "cpu", "cuda" (or "gpu"), "tpu", "auto" (the best that is there), or an Accelerator.

    Raises:
        ConfigurationError: the name is unknown, or this machine has none of these.
    """
    if isinstance(asked, Accelerator):
        return asked
    if asked == "auto":
        return next(kind() for kind in _KINDS.values() if kind.count() > 0)
    name = _SPELLINGS.get(asked, asked)
    kind = _KINDS.get(name)
    if kind is None:
        why = _GONE.get(name, "there is no such accelerator")
        raise ConfigurationError(f'accelerator={asked!r}: {why}. Give "cpu", "gpu", "tpu" or "auto"')
    if kind.count() == 0:
        raise ConfigurationError(f'accelerator={asked!r}: {kind.missing()}. "auto" takes what is there')
    return kind()
