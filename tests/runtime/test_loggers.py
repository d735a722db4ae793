"""Loggers against the real libraries, offline."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import everstep as L
from everstep.code_version import code_version
from everstep.errors import ConfigurationError
from everstep.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from everstep.loggers.hparams import flat, write_yaml
from tests.runtime.build import Memory, Net, loader, trainer


class Logged(Net):
    def __init__(self, width: int = 3, rate: float = 1e-05, shape: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.example_input_array = torch.zeros(2, 3)

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", loss := self.loss(batch))
        self.log("step", float(self.global_step))
        return loss


def scalars(folder: str, name: str) -> list[tuple[int, float]]:
    """As TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture
def quiet_tensorboard(recwarn: Any) -> None:
    import warnings

    warnings.simplefilter("ignore")


def test_s57_tensorboard_folders_values_and_hparams(tmp_path: Path, quiet_tensorboard: None) -> None:
    logger = TensorBoardLogger(save_dir=tmp_path, name="cifar", version="first", log_graph=True)
    runner = trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=2)
    runner.fit(Logged(shape={"a": [1, 2.5]}), loader())
    assert logger.log_dir == str(tmp_path / "cifar" / "first") == runner.log_dir
    assert (logger.save_dir, logger.name, logger.version) == (str(tmp_path), "cifar", "first")
    assert scalars(logger.log_dir, "step") == [(1, 1.0), (3, 3.0), (5, 5.0)]
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {
        "width": 3, "rate": 1e-05, "shape": {"a": [1, 2.5]},
    }  # fmt: skip
    assert scalars(logger.log_dir, "hp_metric") == [(0, -1.0)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["graph"]
    assert TensorBoardLogger(tmp_path, "other").version == 0


def test_s57_tensorboard_takes_the_metrics_of_hyperparameters_after_a_fit(
    tmp_path: Path, quiet_tensorboard: None
) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    model = Logged()
    trainer(tmp_path, max_epochs=1, logger=logger).fit(model, loader())
    for value in (0.5, 0.75):  # the same hyper-parameters, too
        logger.log_hyperparams(model.hparams, {"accuracy": value})
    logger.finalize("success")
    assert scalars(logger.log_dir, "accuracy") == [(0, 0.5), (0, 0.75)]


def test_s57_tensorboard_rewinds_to_the_resumed_step(tmp_path: Path, quiet_tensorboard: None) -> None:
    kept = Memory(every_steps=2)
    arguments: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 1}
    trainer(tmp_path, kept, logger=TensorBoardLogger(tmp_path), **arguments).fit(Logged(), loader())
    resumed = TensorBoardLogger(tmp_path)
    trainer(tmp_path, kept.forget_after(1), logger=resumed, **arguments).fit(Logged(), loader())
    assert resumed.version == 0, "it goes on where it was"
    assert not (tmp_path / "lightning_logs" / "version_1").exists()
    assert [step for step, _ in scalars(resumed.log_dir, "step")] == [0, 1, 2, 3, 4, 5]


def test_s05_csv_is_the_default_and_has_hparams_too(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1, logger=True)
    runner.fit(Logged(), loader())
    assert isinstance(runner.logger, CSVLogger)
    assert yaml.safe_load(Path(runner.logger.log_dir, "hparams.yaml").read_text())["rate"] == 1e-05


@pytest.mark.ranks
def test_s58_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
from pathlib import Path
import everstep as L
from everstep.loggers import WandbLogger
from tests.runtime.build import loader, trainer
from tests.runtime.test_loggers import Logged

where = Path(sys.argv[1])
logger = WandbLogger(project="p", save_dir=where, offline=True, id="abc", prefix="my")
trainer(where, max_epochs=1, logger=logger, log_every_n_steps=2).fit(Logged(), loader())
run = logger.experiment
import numpy
logger.log_table("table", ["a", "b"], [[1, 2]], step=5)
logger.log_image("images", [numpy.zeros((2, 2, 3)), numpy.ones((2, 2, 3))], step=5, caption=["black", "white"])
print("MEDIA", run.summary["my-table"]["nrows"], run.summary["my-images"]["captions"])
print("RESULT", run.id, run.project, run.settings.mode, run.config["rate"], run.summary["my-step"],
      run.summary["trainer/global_step"], run.config["code"]["args"] == sys.argv)
import wandb
wandb.finish()
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert "MEDIA 1 ['black', 'white']" in done.stdout, done.stderr
    assert "RESULT abc p offline 1e-05 5 5 True" in done.stdout, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*-abc/*.wandb"))


@pytest.mark.parametrize("kind", [TensorBoardLogger, WandbLogger, MLFlowLogger])
def test_s58_other_ranks_may_use_the_experiment_and_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    logger = kind(save_dir=tmp_path)
    logger.experiment.add_image("image", torch.zeros(3, 2, 2)).anything[0]()
    if kind is WandbLogger:
        logger.log_image("images", [torch.zeros(3, 2, 2)])
    assert not list(tmp_path.iterdir())


def test_s58_images_and_captions_go_together() -> None:
    with pytest.raises(ConfigurationError, match=r"log_image\(caption=…\): give a list with an item for each image"):
        WandbLogger(offline=True).log_image("images", [1, 2], caption=["one"])


def test_s58_the_csv_loggers_experiment_is_itself(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.experiment.log_metrics({"own": 1.0}, 3)
    logger.save()
    assert "own" in logger.path.read_text()


def test_s58_wandb_keeps_its_run_over_a_resume() -> None:
    logger = WandbLogger(offline=True)
    logger.load_state_dict({"id": "before"})
    assert logger.version == "before"


def test_s58_mlflow_in_a_folder(tmp_path: Path) -> None:
    logger = MLFlowLogger("mine", run_name="first", save_dir=tmp_path / "runs", tags={"team": "vision"})
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=2).fit(Logged(), loader())
    client, run_id = logger.experiment, logger.run_id
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "step")] == [(1, 1.0), (3, 3.0), (5, 5.0)]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "first", "vision")
    assert run.data.params["rate"] == "1e-05"
    again = MLFlowLogger("mine", save_dir=tmp_path / "runs")
    again.load_state_dict(logger.state_dict())
    again.log_hyperparams({"rate": 2.0, "fresh": 1})
    assert again.run_id == run_id
    assert client.get_run(run_id).data.params["rate"] == "1e-05"
    assert logger.save_dir == str(tmp_path / "runs")
    client.log_text(run_id, "hello", "note.txt")
    assert [path.read_text() for path in (tmp_path / "runs").rglob("note.txt")] == ["hello"]


def test_s58_mlflows_older_files_go_on_and_a_server_has_no_folder(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "meta.yaml").touch()
    old = MLFlowLogger(save_dir=tmp_path)
    with pytest.raises(Exception, match="MLFLOW_ALLOW_FILE_STORE"):  # MLflow's own advice reaches the user
        _ = old.experiment
    assert MLFlowLogger(tracking_uri="http://127.0.0.1:1").save_dir is None


@pytest.mark.parametrize("kind", [WandbLogger, MLFlowLogger])
def test_loggers_upload_no_checkpoints_and_say_so(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}\(log_model='all'\).*ModelCheckpoint\(dirpath="):
        kind(log_model="all")
    kind(log_model=False)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for logger, module in (
        (TensorBoardLogger(), "torch.utils.tensorboard"), (WandbLogger(), "wandb"), (MLFlowLogger(), "mlflow.tracking"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigurationError, match="pip install"):
            _ = logger.experiment


def test_loggers_import_their_libraries_when_used() -> None:
    code = """
import sys
from everstep.loggers import *
TensorBoardLogger(), WandbLogger(), MLFlowLogger(), CSVLogger()
print(sorted({"tensorboard", "wandb", "mlflow"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_s63_commit_dirty_flag_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    script = tmp_path / "train.py"
    script.write_text("pass")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    monkeypatch.setattr(sys, "argv", [str(script), "--lr", "0.1"])
    for dirty in (False, True):
        code_version.cache_clear()
        expected = {"args": sys.argv, "git_commit": git("rev-parse", "HEAD"), "git_branch": "main", "git_dirty": dirty}
        assert code_version() == expected
        logs = tmp_path.parent / f"logs{dirty}"
        runner = trainer(tmp_path, Memory(every_steps=2), max_epochs=1, logger=CSVLogger(logs))
        runner.fit(Logged(), loader())
        assert yaml.safe_load(Path(runner.logger.log_dir, "code.yaml").read_text()) == expected  # type: ignore[union-attr]
        (tmp_path / "train.py").write_text("pass  # changed")
    code_version.cache_clear()
    monkeypatch.setattr(sys, "argv", [str(tmp_path.parent / "elsewhere" / "x.py")])
    assert code_version()["args"]
    code_version.cache_clear()


def test_s63_the_version_of_the_code_is_in_checkpoints(tmp_path: Path) -> None:
    kept = Memory(every_steps=2)
    trainer(tmp_path, kept, max_epochs=1).fit(Logged(), loader())
    assert kept.saved[0].shared["checkpoint"]["everstep"]["code"] == code_version()


def test_hyperparameters_of_module_and_datamodule_must_not_contradict(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader()

    runner = trainer(tmp_path, max_epochs=1, logger=True)
    with pytest.raises(ConfigurationError, match="both have a hyper-parameter 'width', 3 and 4"):
        runner.fit(Logged(), datamodule=Data(4))


@pytest.mark.parametrize(
    "params",
    [
        {"a": 1e-5, "b": 1e300, "c": -0.0, "d": float("inf"), "on": True, "text": "yes", "none": None},
        {"a": {"b": {"c": [1, "x: y", 2e-7]}}, "empty": {}, "list": [], "with space": "#no"},
    ],
)
def test_yaml_reads_back_what_was_written(tmp_path: Path, params: Any) -> None:
    write_yaml(tmp_path / "x.yaml", params)
    assert yaml.safe_load((tmp_path / "x.yaml").read_text()) == params


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": torch.float32}) == {
        "a/b": 1, "a/c/d": json.dumps([1, 2]), "e": "torch.float32",
    }  # fmt: skip
