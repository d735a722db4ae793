"""Checkpoints: durable, verified, readable by any world size, and never a pickle.

    checkpointer = Checkpointer.from_environment(Environment.read(), store)   # None where the run has no prefix
    restored = checkpointer.open()                                            # newest verified checkpoint, or None
    checkpointer.save(call, step, shared, rank)                               # returns when the state is staged
    checkpointer.wait()                                                       # ... and durable

The format is described in docs/adr/0004-checkpoint-format.md. Importing this package loads no torch and starts no
thread.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep.checkpoint.checkpointer import Checkpointer as Checkpointer
    from everstep.checkpoint.checkpointer import Restored as Restored

__all__ = ["Checkpointer", "Restored"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from everstep.checkpoint import checkpointer

        return getattr(checkpointer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
