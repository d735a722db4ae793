"""The base of all loggers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from everstep.environment import Environment
from everstep.errors import ConfigurationError


class Logger:
    """Override `log_metrics`; the rest as needed. The base class forgets everything."""

    #: It writes at its own pace. False: `save` is called whenever something was logged.
    saves_itself = False

    @property
    def name(self) -> str | None:
        """Of the experiment; None: it has none."""
        return None

    @property
    def version(self) -> int | str | None:
        """Of the run within the experiment; None: it has none."""
        return None

    def take_version(self, version: int | str | None) -> None:
        """Called on ranks that do not log: the version is that of rank 0."""

    @property
    def save_dir(self) -> str | None:
        """The folder above those of experiments; None: it writes no files."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The folder of this version's files."""
        return None

    @property
    def experiment(self) -> Any:
        """The back end's own object, for what only it can do (images, texts …)."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values of one moment; `step` counts finished optimizer steps from 0."""

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Hyper-parameters, once when a Trainer call begins; may be nested. `metrics`: first values of those by which
        runs are compared, where the back end wants them."""

    def log_code(self, code: Mapping[str, Any]) -> None:
        """Which code is running: args, git_commit, git_branch, git_dirty. Once when a Trainer call begins."""

    def log_graph(self, model: Any) -> None:
        """The graph of a module that has an `example_input_array`, where the back end can draw one."""

    def save(self) -> None:
        """Write what is still in memory."""

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A ModelCheckpoint has written a file, which is there. The training waits for it where this is overridden."""

    def finalize(self, status: str) -> None:
        """A Trainer call has ended: "success" or "failed"."""
        self.save()

    def state_dict(self) -> dict[str, Any]:
        """Where the log stands, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to there at the next value: what was logged later will be logged again."""


def rank_zero_experiment(experiment: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Below @property, for `experiment` of a logger of one's own: on the ranks that do not log, something that takes
    every call and does nothing."""

    @functools.wraps(experiment)
    def on_rank_zero(logger: Any) -> Any:
        from everstep.loggers.dummy import Anything

        return experiment(logger) if Environment.read().rank == 0 else Anything()

    return on_rank_zero


def refuse_log_model(logger: str, log_model: bool | str) -> None:
    """
    Raises:
        ConfigurationError: the logger is asked to upload checkpoints.
    """
    if log_model:
        raise ConfigurationError(
            f"{logger}(log_model={log_model!r}): loggers upload no checkpoints. Leave it out, and let them go to an "
            'object store by ModelCheckpoint(dirpath="s3://…"), or upload trainer.best_model_path in on_fit_end'
        )
