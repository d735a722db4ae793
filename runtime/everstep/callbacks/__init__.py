"""What listens to the loop. `Callback` has every hook as a no-op; the hooks are listed in trainer/hooks.py."""

from everstep.callbacks.base import Callback
from everstep.callbacks.progress import ProgressBar

__all__ = ["Callback", "ProgressBar"]
