"""How often progress is written. Whatever else changes in a status is written at once; step and loss change always."""

from collections.abc import Callable

from everstep_operator.api.trainingrun import ProgressStatus, Status

#: Of one run: so many seconds between two writes, unless there is a whole percent more to tell.
EVERY_SECONDS = 30.0
#: Of all runs together.
WRITES_PER_SECOND = 20.0

#: With more runs than this in mind, those are forgotten whose turn has come anyway.
_REMEMBERED = 10_000
_PROGRESS = ("progress", "goodput", "last_checkpoint")


class ProgressWrites:
    """Decides for each status whether it has to be written now."""

    def __init__(self, clock: Callable[[], float], per_second: float = WRITES_PER_SECOND) -> None:
        self._clock = clock
        self._per_second = per_second
        self._saved_up = per_second  # writes that may happen now, at most those of one second
        self._counted = clock()
        self._last: dict[str, float] = {}  # uid of a run: when its progress was written

    def can_wait(self, uid: str, old: Status, new: Status) -> bool:
        """Whether the new status tells only of progress, and that was told a moment ago."""
        if len(self._last) > _REMEMBERED:
            recent = self._clock() - EVERY_SECONDS
            self._last = {run: written for run, written in self._last.items() if written > recent}
        changed = {name: getattr(new, name) for name in _PROGRESS}
        if old.model_copy(update=changed) != new:
            self._last[uid] = self._clock()
            return False
        since = self._clock() - self._last.get(uid, float("-inf"))
        if since < EVERY_SECONDS and _percent(old.progress) == _percent(new.progress):
            return True
        if not self._take():
            return True
        self._last[uid] = self._clock()
        return False

    def _take(self) -> bool:
        now = self._clock()
        self._saved_up = min(self._per_second, self._saved_up + (now - self._counted) * self._per_second)
        self._counted = now
        if self._saved_up < 1:
            return False
        self._saved_up -= 1
        return True


def _percent(progress: ProgressStatus | None) -> int | None:
    return None if progress is None else progress.percent
