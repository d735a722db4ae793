"""Seconds and calls of each action: hooks, steps, loading data, backward."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from everstep.profilers.report import ReportingProfiler, table


class SimpleProfiler(ReportingProfiler):
    """By the wall clock of this process: on an accelerator, the time to enqueue what is done there, not to do it.

    Args:
        extended: with calls and parts of the whole; False: mean and total only.
    """

    def __init__(
        self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None, extended: bool = True
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.recorded_durations: dict[str, list[float]] = defaultdict(list)  # seconds, by action
        self._began = time.perf_counter()

    @contextmanager
    def profile(self, action: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.recorded_durations[action].append(time.perf_counter() - start)

    def summary(self) -> str:
        passed = time.perf_counter() - self._began
        rows = []
        for action, times in sorted(self.recorded_durations.items(), key=lambda item: -sum(item[1])):
            total, mean = sum(times), sum(times) / len(times)
            row = [action, f"{mean:.5g}", f"{total:.5g}"]
            if self.extended:
                row[2:2] = [str(len(times))]
                row.append(f"{100 * total / passed:.3g}")
            rows.append(row)
        header = (
            ["Action", "Mean (s)", "Calls", "Total (s)", "%"] if self.extended else ["Action", "Mean (s)", "Total (s)"]
        )
        return f"{table(header, rows)}\n{passed:.5g} s in all; actions may lie in one another\n"
