"""Python's cProfile of each action."""

import cProfile
import io
import os
import pstats
from collections.abc import Iterator
from contextlib import contextmanager

from everstep.profilers.report import ReportingProfiler


class AdvancedProfiler(ReportingProfiler):
    """Which functions take the time, by action. Slows down what calls many of them.

    Args:
        line_count_restriction: of each action, at most so many functions (an int) or that part of them (a float).
        dump_stats: also write <folder>/<filename>.<action>.prof, for pstats, snakeviz and the like.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 20,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction, self.dump_stats = line_count_restriction, dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._running: cProfile.Profile | None = None

    @contextmanager
    def profile(self, action: str) -> Iterator[None]:
        outer = self._running
        if outer is not None:
            outer.disable()  # of two that run at a time, Python takes one
        profile = self._running = self.profiled_actions.setdefault(action, cProfile.Profile())
        if profile is not outer:
            profile.enable()
        try:
            yield
        finally:
            profile.disable()
            self._running = outer
            if outer is not None:
                outer.enable()

    def summary(self) -> str:
        parts = []
        for action, profile in self.profiled_actions.items():
            stream = io.StringIO()
            pstats.Stats(profile, stream=stream).strip_dirs().sort_stats("cumulative").print_stats(
                self.line_count_restriction
            )
            parts.append(f"== {action}\n{stream.getvalue().strip()}\n")
        return "\n".join(parts)

    def teardown(self, stage: str) -> None:
        if self.dump_stats:
            self.folder.mkdir(parents=True, exist_ok=True)
            for action, profile in self.profiled_actions.items():
                name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in action)
                profile.dump_stats(self.folder / f"{self.filename or stage}.{name}.prof")
        super().teardown(stage)
