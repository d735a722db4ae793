"""The Trainer: trainer.py (the four verbs), call.py (what they share), fit.py and evaluate.py (the loops), hooks.py."""

from everstep.trainer.trainer import Trainer

__all__ = ["Trainer"]
