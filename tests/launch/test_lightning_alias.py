"""Scripts as they are: `import lightning` is Everstep under --lightning-alias. S-100, S-101."""

import subprocess
import sys
from pathlib import Path

import pytest

from everstep.launch.lightning_alias import FOLDER
from tests.runtime.processes import environment


def python(script: str, folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    words = [sys.executable, *before, str(path)]
    return subprocess.run(words, capture_output=True, text=True, env=environment(PYTHONPATH=str(FOLDER)), cwd=folder)


def test_s100_every_name_of_lightning_is_everstep(tmp_path: Path) -> None:
    script = """
import everstep
import lightning as L
import lightning.pytorch as pl
import pytorch_lightning as old
from lightning.fabric import seed_everything
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.model_checkpoint import ModelCheckpoint as same
from lightning.pytorch.loggers.csv_logs import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.rank_zero import rank_zero_info

assert L.Trainer is pl.Trainer is old.Trainer is Trainer is everstep.Trainer
assert pl.callbacks.ModelCheckpoint is ModelCheckpoint is same is everstep.callbacks.ModelCheckpoint
assert issubclass(LightningModule, everstep.LightningModule) and CSVLogger is everstep.loggers.CSVLogger
assert seed_everything is everstep.seed_everything is L.pytorch.seed_everything
assert not hasattr(pl, "__nothing__")
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader, grad_norm, suggested_max_num_workers

from lightning.pytorch.callbacks.lr_monitor import LearningRateMonitor
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers.logger import DummyLogger, rank_zero_experiment
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.utilities import AttributeDict
from lightning.pytorch.utilities.model_helpers import is_overridden
from pytorch_lightning.callbacks.stochastic_weight_avg import StochasticWeightAveraging

assert LearningRateMonitor is everstep.callbacks.LearningRateMonitor and AttributeDict(a=1).a == 1
assert LightningOptimizer.__module__.startswith("everstep.") and rank_zero_only.rank == 0
assert is_overridden("forward", type("Net", (L.LightningModule,), {"forward": print})())
assert not is_overridden("training_step", L.LightningModule())
rank_zero_info("told")
assert DoublePrecision().name == "64-true" and MixedPrecision is everstep.plugins.MixedPrecision
assert CPUAccelerator is everstep.accelerators.CPUAccelerator and callable(grad_norm)
print(pl.__version__, old.LightningDataModule.__module__, rank_zero_only(lambda: 5)())
"""
    done = python(script, tmp_path)
    assert (done.stderr, done.stdout) == ("told\n", "2.6.0 everstep.data 5\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from lightning.pytorch.cli import LightningCLI", "use instead: build the Trainer in the script"),
        ("from lightning.pytorch.callbacks import ModelPruning", "use instead: call torch.nn.utils.prune"),
        ("import lightning.pytorch.tuner.tuning", "use instead: choose the learning rate"),
        ("import lightning.pytorch as pl; pl.NoSuchThing", "has no lightning.pytorch.NoSuchThing; take it out"),
        (
            "from lightning.pytorch.callbacks.lr_finder import LearningRateFinder",
            "use instead: choose the learning rate",
        ),
        ("from lightning.fabric.plugins.io import TorchCheckpointIO", "use instead: nothing: files are read"),
        ("from pytorch_lightning.utilities.data import extract_batch_size", "use instead: self.log(…, batch_size=…)"),
        ("from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher", "use instead: the Trainer's own"),
        ("from pytorch_lightning.plugins import DDPPlugin", "use instead: DDPStrategy"),
        ("from pytorch_lightning.demos.boring_classes import BoringModel", "use instead: a module and a datamodule"),
    ],
)
def test_s100_what_everstep_has_not_raises_and_says_what_to_use(tmp_path: Path, line: str, message: str) -> None:
    done = python(line, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("everstep.launch.lightning_alias.MissingInEverstep")


def test_s100_packages_are_attributes_without_being_imported(tmp_path: Path) -> None:
    script = """
import lightning as L

print(L.pytorch.Trainer is L.Trainer, L.fabric.Fabric is L.Fabric, L.pytorch.callbacks.Timer.__name__)
"""
    done = python(script, tmp_path)
    assert (done.stderr, done.stdout) == ("", "True True Timer\n")


SCRIPT = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        import pytorch_lightning  # in a spawned worker: a fresh interpreter

        assert pytorch_lightning.Trainer.__module__ == "everstep.trainer.trainer"
        return torch.ones(2)


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    loader = DataLoader(Data(), batch_size=4, num_workers=1, multiprocessing_context="spawn")
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Module(), loader)
    print("steps", trainer.global_step, "sitecustomize", __import__("sitecustomize").__file__)
"""


@pytest.mark.ranks
def test_s100_everstep_launch_runs_a_script_unedited(tmp_path: Path) -> None:
    """In the worker and in what it spawns; and the user's own sitecustomize still runs."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "sitecustomize.py").write_text("import os\nos.environ['MINE'] = 'ran'\n")
    (tmp_path / "script.py").write_text(SCRIPT + "    print('mine', __import__('os').environ['MINE'])\n")
    words = [sys.executable, "-m", "everstep.cli", "launch", "--standalone", "--lightning-alias", "script.py"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment(PYTHONPATH=str(mine)), cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"steps 2 sitecustomize {mine / 'sitecustomize.py'}" in done.stdout
    assert "mine ran" in done.stdout
    words.remove("--lightning-alias")
    words.insert(-1, "--max-restarts=0")
    (tmp_path / "script.py").write_text("import lightning\nassert 'everstep' in lightning.Trainer.__module__")
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode == 1, "only where it is asked for"
