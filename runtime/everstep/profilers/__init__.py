"""How long what takes. The base class measures nothing, and costs nothing."""

from typing import TYPE_CHECKING

from everstep.errors import ConfigurationError
from everstep.lazy import names_of
from everstep.profilers.base import Profiler

if TYPE_CHECKING:
    from everstep.profilers.advanced import AdvancedProfiler
    from everstep.profilers.pytorch import PyTorchProfiler
    from everstep.profilers.simple import SimpleProfiler

PassThroughProfiler = Profiler  # as Lightning calls it

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler", "profiler_of"]

_HOME = {"AdvancedProfiler": "advanced", "PyTorchProfiler": "pytorch", "SimpleProfiler": "simple"}
__getattr__ = names_of(__name__, _HOME)


def profiler_of(given: Profiler | str | None) -> Profiler:
    """What `Trainer(profiler=…)` means.

    Raises:
        ConfigurationError: it is no profiler, nor the name of one.
    """
    if given is None:
        return Profiler()
    if isinstance(given, Profiler):
        return given
    for name, module in _HOME.items():
        if given == module:
            profiler: Profiler = __getattr__(name)()
            return profiler
    raise ConfigurationError(f"profiler={given!r}: give one of {sorted(_HOME.values())}, a Profiler, or None")
