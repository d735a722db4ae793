"""The base of all loggers."""

from collections.abc import Mapping
from typing import Any


class Logger:
    """Override `log_metrics`; the rest as needed. The base class forgets everything."""

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> int | str | None:
        return None

    @property
    def save_dir(self) -> str | None:
        return None

    @property
    def log_dir(self) -> str | None:
        """The folder of this version's files."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values of one moment; `step` counts finished optimizer steps from 0."""

    def save(self) -> None:
        """Write what is still in memory."""

    def finalize(self, status: str) -> None:
        """A Trainer call has ended: "success" or "failed"."""
        self.save()

    def state_dict(self) -> dict[str, Any]:
        """Where the log stands, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to there at the next value: what was logged later will be logged again."""
