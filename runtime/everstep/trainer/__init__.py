"""The Trainer: trainer.py (the four verbs), fit.py and evaluate.py (the loops), hooks.py (what they call)."""

from everstep.trainer.trainer import Trainer

__all__ = ["Trainer"]
