"""CombinedLoader, where Lightning has it."""

from everstep.sampling.combined import CombinedLoader

__all__ = ["CombinedLoader"]
