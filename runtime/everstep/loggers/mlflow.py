"""MLflow. Needs mlflow, or mlflow-skinny and what its database needs; imported when the run begins."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from everstep.errors import ConfigurationError
from everstep.loggers.base import Logger, rank_zero_experiment, refuse_log_model
from everstep.loggers.hparams import flat

_LONGEST_PARAM = 6000  # MLflow's limit
_MOST_PARAMS = 100  # in one request


class MLFlowLogger(Logger):
    """One run in an MLflow experiment. A resumed script goes on with the same run; values after the resumed step are
    logged again: MLflow keeps both, and cannot take values back.

    Args:
        tracking_uri: of the server or store; default: MLFLOW_TRACKING_URI, else a database in the folder `save_dir`.
            A folder that holds the files of an MLflow before 3 goes on as such.
        tags: of the run. artifact_location: of a new experiment.
        run_id: an existing run, to go on with it.
        prefix: before each metric's name, with a dash between them.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | os.PathLike[str] | None = "./mlruns",
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
    ) -> None:
        refuse_log_model("MLFlowLogger", log_model)
        self._experiment_name, self._run_name = experiment_name, run_name
        self._folder: Path | None = None  # of a store of our own
        self._artifacts = artifact_location
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or self._store_in(Path(save_dir or "."))
        self._tags = dict(tags or {})
        self._prefix = f"{prefix}-" if prefix else ""
        self._run_id = run_id
        self._client: Any = None
        self._experiment_id: str | None = None

    def _store_in(self, folder: Path) -> str:
        """The URI of a store in this folder."""
        self._folder = folder.absolute()
        if any(self._folder.glob("*/meta.yaml")):
            return self._folder.as_uri()
        self._artifacts = self._artifacts or (self._folder / "artifacts").as_uri()
        return f"sqlite:///{self._folder / 'mlflow.db'}"

    @property
    def name(self) -> str | None:
        """The experiment's id, once the run has begun."""
        return self._experiment_id or self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's id, once it has begun."""
        return self._run_id

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, which begins when it is first asked for."""
        _ = self.experiment
        return self._run_id

    def take_version(self, version: int | str | None) -> None:
        self._run_id = str(version) if version is not None else None

    @property
    def save_dir(self) -> str | None:
        """Of a store of its own."""
        return str(self._folder) if self._folder is not None else None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The MlflowClient, on rank 0.

        Raises:
            ConfigurationError: mlflow is not installed.
        """
        if self._client is None:
            try:
                from mlflow.tracking import MlflowClient

                if self._uri.startswith("sqlite:"):
                    import alembic  # noqa: F401
                    import sqlalchemy  # noqa: F401
            except ImportError as error:
                raise ConfigurationError(
                    f"MLFlowLogger needs mlflow ({error}): pip install mlflow, or mlflow-skinny sqlalchemy alembic"
                ) from None
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(self._uri)
            if self._run_id is not None:
                self._experiment_id = client.get_run(self._run_id).info.experiment_id
                client.update_run(self._run_id, "RUNNING")
            else:
                known = client.get_experiment_by_name(self._experiment_name)
                self._experiment_id = (
                    known.experiment_id
                    if known is not None
                    else client.create_experiment(self._experiment_name, self._artifacts)
                )
                self._run_id = client.create_run(
                    self._experiment_id, tags=self._tags, run_name=self._run_name
                ).info.run_id
            self._client = client
        return self._client

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(f"{self._prefix}{name}", float(v), now, step or 0) for name, v in metrics.items()]
        self.experiment.log_batch(self.run_id, metrics=values)

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        from mlflow.entities import Param

        texts = {name: str(value)[:_LONGEST_PARAM] for name, value in flat(params).items()}
        # MLflow refuses a second, different value: what the run has already stays.
        known = self.experiment.get_run(self.run_id).data.params
        fresh = [Param(name, text) for name, text in texts.items() if name not in known]
        for start in range(0, len(fresh), _MOST_PARAMS):
            self.experiment.log_batch(self.run_id, params=fresh[start : start + _MOST_PARAMS])

    def log_code(self, code: Mapping[str, Any]) -> None:
        tags = {
            "mlflow.source.name": code["args"][0] if code["args"] else None,
            "mlflow.source.git.commit": code["git_commit"],
            "mlflow.source.git.branch": code["git_branch"],
            "git_dirty": code["git_dirty"],
            "args": " ".join(code["args"]),
        }
        for name, value in tags.items():
            if value is not None:
                self.experiment.set_tag(self.run_id, name, str(value))

    def finalize(self, status: str) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id, {"success": "FINISHED", "failed": "FAILED"}[status])

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self._run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._client is None:
            self._run_id = state["run_id"]
