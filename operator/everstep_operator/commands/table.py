"""How `everstep run` looks: a live table on a terminal; in a pipe or in CI plain lines, one per change."""

import os
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from everstep_operator.api.trainingrun import Status, TrainingRun

if TYPE_CHECKING:
    from rich.table import Table

#: Plain lines about nothing but progress come after so many per cent of the steps, or seconds.
PERCENT, SECONDS = 5, 30.0


def screen(out: TextIO, environment: Mapping[str, str] = os.environ) -> "Lines":
    """The one that fits what `out` is connected to."""
    plain = not out.isatty() or bool(environment.get("CI")) or environment.get("TERM", "dumb") == "dumb"
    return Lines(out) if plain else LiveTable(out)


def cells(status: Status) -> dict[str, str]:
    """The columns, by their titles."""
    progress, saved, goodput = status.progress, status.last_checkpoint, status.goodput
    total = f"/{progress.max_steps}" if progress is not None and progress.max_steps else ""
    return {
        "Phase": str(status.phase or "Pending"),
        "Nodes": f"{status.nodes.ready}/{status.nodes.desired}",
        "Step": "-" if progress is None else f"{progress.step}{total}",
        "Loss": "-" if progress is None or progress.loss is None else f"{progress.loss:.4g}",
        "Restarts": str(status.restarts.total),
        "Checkpoint": "-" if saved is None else str(saved.step),
        "Goodput": "-" if goodput is None else f"{goodput.ratio:.0%}",
    }


class Lines:
    """Plain text. A reader that has gone away does not stop the training."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: dict[str, str] = {}
        self._shown_at: datetime | None = None
        self._percent = 0

    def say(self, text: str) -> None:
        self._write(f"{datetime.now():%H:%M:%S}  {text}\n")

    def raw(self, text: str) -> None:
        """Somebody else's words, such as a traceback, as they are."""
        self._write(text)

    def show(self, run: TrainingRun, now: datetime) -> None:
        """The status, if that is worth a line."""
        new = cells(run.status)
        over = run.status.phase is not None and run.status.phase.over
        if over and new["Phase"] == self._shown.get("Phase"):
            return  # what leaves now only tidies up
        percent = (run.status.progress.percent or 0) if run.status.progress is not None else 0
        moving = ("Step", "Loss", "Goodput")
        changed = [title for title in new if new[title] != self._shown.get(title)]
        if all(title in moving for title in changed):
            enough = self._shown_at is None or (now - self._shown_at).total_seconds() >= SECONDS
            if not changed or not (enough or abs(percent - self._percent) >= PERCENT):
                return
        self._shown, self._shown_at, self._percent = new, now, percent
        words = {
            "Nodes": "nodes {}",
            "Step": "step {}",
            "Loss": "loss {}",
            "Restarts": "restarts {}",
            "Checkpoint": "checkpoint {}",
            "Goodput": "goodput {}",
        }
        rest = "  ".join(form.format(new[title]) for title, form in words.items() if new[title] != "-")
        self.say(f"{new['Phase']:<10}  {rest}")

    def close(self) -> None:
        """Nothing more will be shown; `say` still works."""

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:  # a closed pipe, a terminal that is gone: from here on into nothing
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._out.fileno())
            os.close(null)


class LiveTable(Lines):
    """A table that stays at the bottom of the terminal, with what is said above it."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def say(self, text: str) -> None:
        try:
            self._console.print(f"{datetime.now():%H:%M:%S}  {text}", markup=False, highlight=False, soft_wrap=True)
        except OSError:
            self._write("")

    def show(self, run: TrainingRun, now: datetime) -> None:
        new = cells(run.status)
        if new == self._shown:
            return
        self._shown = new
        try:
            self._live.update(_table(run, new), refresh=True)
        except OSError:  # the terminal is gone
            self._write("")

    def close(self) -> None:
        try:
            self._live.stop()
        except OSError:
            self._write("")


def _table(run: TrainingRun, row: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{run.metadata.namespace}/{run.metadata.name}", title_justify="left")
    for title in row:
        table.add_column(title, justify="left" if title == "Phase" else "right", no_wrap=True)
    table.add_row(*row.values())
    return table
