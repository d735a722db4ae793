"""The threads that write checkpoints come after the one that trains."""

import os
import sys
import threading

#: Added to the thread's nice value. The scheduler gives a thread of 10 about a tenth of what one of 0 gets, where both
#: want the same core; on an idle core it makes no difference.
_NICER = 10


def give_way() -> None:
    """Lower the priority of the calling thread, so that on busy cores training loses little to its writing."""
    if sys.platform == "linux":  # elsewhere priorities belong to whole processes
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICER))
