"""AttributeDict, where Lightning has it."""

from everstep.hparams import AttributeDict

__all__ = ["AttributeDict"]
