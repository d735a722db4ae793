"""Metrics as a CSV file: one row a step, a column a name, new names add columns."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everstep.loggers.folder import FolderLogger


class CSVLogger(FolderLogger):
    """Writes <save_dir>/<name>/version_<n>/metrics.csv. The version is the next free one, unless given.

    Rows are kept in memory and written every `flush_logs_every_n_steps` rows, at checkpoints and at the end.
    """

    saves_itself = True

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = ".",
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._every = flush_logs_every_n_steps
        self._fields: list[str] = []
        self._written = 0  # rows in the file
        self._rows: list[dict[str, float]] = []  # not yet there
        self._rewind_to: int | None = None  # rows to keep of the file, before the next one

    @property
    def path(self) -> Path:
        """The file with the values."""
        return Path(self.log_dir) / "metrics.csv"

    @property
    def experiment(self) -> "CSVLogger":
        """This logger: there is nothing behind it."""
        return self

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._rewind_to is not None:
            self._rewind()
        row = {**self.prefixed(metrics), "step": step if step is not None else self._written + len(self._rows)}
        last = self._rows[-1] if self._rows else None
        if last is not None and last["step"] == row["step"] and last.keys() & row.keys() <= {"step", "epoch"}:
            last.update(row)  # values of one step that came in several calls
            return
        if len(self._rows) >= self._every:
            self.save()
        self._rows.append(row)

    def save(self) -> None:
        if not self._rows:
            return
        new = sorted({key for row in self._rows for key in row} - set(self._fields))
        if new:
            self._rewrite(self._read() + self._rows, self._fields + new)
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._fields).writerows(self._rows)
        self._written += len(self._rows)
        self._rows = []

    def state_dict(self) -> dict[str, Any]:
        self.save()
        return {"version": self.version, "rows": self._written if self._rewind_to is None else self._rewind_to}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._version, self._rewind_to, self._rows = state["version"], state["rows"], []

    def _rewind(self) -> None:
        rows, self._rewind_to = self._rewind_to, None
        self._fields, self._written = [], 0
        if not self.path.exists():
            return  # another machine's disk: what was logged there is there
        with self.path.open(newline="") as file:
            self._fields = next(csv.reader(file), [])
        kept = self._read()[:rows]
        self._rewrite(kept, self._fields)
        self._written = len(kept)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]], fields: list[str]) -> None:
        self._fields = fields
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)
        fresh.replace(self.path)  # a crash leaves the old file or the new one
