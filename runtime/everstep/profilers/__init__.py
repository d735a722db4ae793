"""How long what takes. The base class measures nothing, and costs nothing."""

from collections.abc import Callable

from everstep.errors import ConfigurationError
from everstep.profilers.advanced import AdvancedProfiler
from everstep.profilers.base import Profiler
from everstep.profilers.pytorch import PyTorchProfiler
from everstep.profilers.simple import SimpleProfiler

PassThroughProfiler = Profiler

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler", "profiler_of"]

_BY_NAME: dict[str, Callable[[], Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def profiler_of(given: Profiler | str | None) -> Profiler:
    """What `Trainer(profiler=…)` means.

    Raises:
        ConfigurationError: it is no profiler, nor the name of one.
    """
    if given is None:
        return Profiler()
    if isinstance(given, Profiler):
        return given
    if not isinstance(given, str) or given.lower() not in _BY_NAME:
        raise ConfigurationError(f"profiler={given!r}: give one of {sorted(_BY_NAME)}, a Profiler, or None")
    return _BY_NAME[given.lower()]()
