"""Weights & Biases. Needs the wandb package, which is imported when the run begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from everstep.errors import ConfigurationError
from everstep.loggers.base import Logger, rank_zero_experiment, refuse_log_model
from everstep.loggers.hparams import plain
from everstep.utilities.rank_zero import rank_zero_only

_STEP = "trainer/global_step"  # the x axis: W&B's own step only goes up, and a resumed run goes back


class WandbLogger(Logger):
    """One run of W&B. A resumed script goes on with the same run; values after the resumed step are logged again, and
    with the x axis `trainer/global_step` lie over the former ones: W&B cannot take values back.

    Args:
        name: of the run, for people. project, and any other of `kwargs`: of wandb.init.
        save_dir, dir: where wandb keeps its files.
        version, id: the run's id, to go on with it; default: a new one.
        offline: write files only; `wandb sync` uploads them.
        experiment: a run that exists already, instead of one of its own.
        prefix: before each metric's name, with a dash between them. anonymous: of wandb.init.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | Literal["all"] = False,
        experiment: Any = None,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        refuse_log_model("WandbLogger", log_model)
        self._name = name
        self._save_dir = Path(save_dir if dir is None else dir)
        self._id = version or id
        self._offline = offline
        self._project = project or os.environ.get("WANDB_PROJECT", "lightning_logs")
        self._prefix = f"{prefix}-" if prefix else ""
        self._options = kwargs if anonymous is None else {"anonymous": "allow" if anonymous else None, **kwargs}
        self._run = experiment

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's id, once it has begun."""
        return self._run.id if self._run is not None else self._id

    def take_version(self, version: int | str | None) -> None:
        self._id = str(version) if version is not None else None

    @property
    def save_dir(self) -> str:
        """The folder of wandb/, with the runs."""
        return str(self._save_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, on rank 0.

        Raises:
            ConfigurationError: wandb is not installed.
        """
        if self._run is None:
            try:
                import wandb
            except ImportError as error:
                raise ConfigurationError(f"WandbLogger needs wandb ({error}): pip install wandb") from None
            self._save_dir.mkdir(parents=True, exist_ok=True)
            # A run that somebody has begun in this process is taken over, as wandb.init itself would do.
            self._run = wandb.run or wandb.init(
                name=self._name, project=self._project, dir=str(self._save_dir), id=self._id,
                **{"resume": "allow", "mode": "offline" if self._offline else None, **self._options},
            )  # fmt: skip
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {f"{self._prefix}{name}": value for name, value in metrics.items()}
        self.experiment.log(values if step is None else {**values, _STEP: step})

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        self.experiment.config.update(plain(params), allow_val_change=True)

    def log_code(self, code: Mapping[str, Any]) -> None:
        self.experiment.config.update({"code": dict(code)}, allow_val_change=True)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[Any] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """A wandb.Table of columns and rows, or of a pandas dataframe."""
        _ = self.experiment
        import wandb

        self.log_metrics({key: wandb.Table(columns=columns, data=data, dataframe=dataframe)}, step)

    log_text = log_table

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        """Images: tensors, arrays, PIL's or paths. `kwargs`: lists with an item for each image, such as caption.

        Raises:
            ConfigurationError: `images` is no list, or another list is not of its length.
        """
        for name, values in {"images": images, **kwargs}.items():
            if not isinstance(values, list) or len(values) != len(images):
                raise ConfigurationError(f"log_image({name}=…): give a list with an item for each image")
        _ = self.experiment
        import wandb

        each = [{name: values[number] for name, values in kwargs.items()} for number in range(len(images))]
        self.log_metrics({key: [wandb.Image(image, **more) for image, more in zip(images, each, strict=True)]}, step)

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """The wandb artifact, marked as used by this run."""
        return self.experiment.use_artifact(artifact, type=artifact_type)

    def watch(self, model: Any, log: str = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Histograms of gradients or parameters, by wandb itself."""
        self.experiment.watch(model, log=log, log_freq=log_freq, log_graph=log_graph)

    def finalize(self, status: str) -> None:
        """The run stays open for the script's next call; wandb ends it with the process, or the script by
        wandb.finish()."""

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._run is None:
            self._id = state["id"]
