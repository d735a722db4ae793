"""The founding document's program, unedited but for its import lines: S-47, S-100 … S-122."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import everstep
from everstep.checkpoint import ckpt
from tests.run.session import Session
from tests.runtime.processes import environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10"
#: SHA-256 of the document's blocks of Python, in their order, an empty line between them.
DOCUMENT = "0abbb957d08e0c8586279cda729489765eee9cd11062c2ebf049b43d06581a8d"


def test_s100_nothing_is_changed_but_the_import_lines() -> None:
    _, _, program = (EXAMPLE / "founding.py").read_text().partition("\n\n")
    lines = [
        line.replace("everstep", "pytorch_lightning") if re.match("(import|from) everstep", line) else line
        for line in program.split("\n")
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DOCUMENT


def test_s103_cifar10_is_unpacked_by_prepare_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`download=True` finds the archive that is there already; without prepare_data there would be no data set."""
    make_data: Any = runpy.run_path(str(EXAMPLE / "make_data.py"))
    from torchvision.datasets import CIFAR10
    from torchvision.transforms import ToTensor

    for name in ("train_list", "test_list", "meta", "tgz_md5"):
        monkeypatch.setattr(CIFAR10, name, getattr(CIFAR10, name))
    make_data["write"](tmp_path / "made", 20, 10)
    make_data["accept"](tmp_path / "made")
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / make_data["FOLDER"], make_data["FOLDER"])
    CIFAR10.tgz_md5 = hashlib.md5(archive.read_bytes()).hexdigest()

    class Data(everstep.LightningDataModule):
        def prepare_data(self) -> None:
            CIFAR10(tmp_path, train=False, download=True)

        def setup(self, stage: str | None = None) -> None:
            self.images = CIFAR10(tmp_path, train=False, transform=ToTensor())

        def test_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.images, batch_size=5)

    class Counts(everstep.LightningModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            assert images.shape == (5, 3, 32, 32)
            self.log("labels", labels.unique().numel(), reduce_fx="sum")

    runner = everstep.Trainer(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, accelerator="cpu")
    assert runner.test(Counts(), Data(), verbose=False)[0]["labels"] <= 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its folder and all that it has printed."""
    folder = tmp_path_factory.mktemp("cifar10")
    words = [sys.executable, EXAMPLE / "train.py", "--folder", folder, "--epochs", "2", "--images", "120"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(PYTHONSAFEPATH=""), timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def line_after(words: str, out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(words)).removeprefix(words).strip()


@pytest.mark.ranks
@pytest.mark.timeout(450)
class TestAlone:
    def test_s47_s101_s110_s111_s112_it_trains(self, finished: tuple[Path, str]) -> None:
        _, out = finished
        assert line_after("PyTorch Lightning version:", out) == everstep.__version__
        assert line_after("- Max epochs:", out) == "2"
        assert line_after("- Accelerator:", out)
        assert line_after("- Precision:", out) == "bf16-mixed", "16 on a CPU, as in Lightning"
        assert line_after("- Callbacks:", out) == "5"
        assert "Training completed!" in out

    def test_s50_s113_s114_the_best_is_kept_and_tested(self, finished: tuple[Path, str]) -> None:
        folder, out = finished
        best = Path(line_after("Best model path:", out))
        score = float(line_after("Best validation accuracy:", out))
        assert best.parent == folder / "lightning_logs/cifar10_cnn/v1.0/checkpoints"
        assert re.fullmatch(rf"best-checkpoint-epoch=0[01]-val_acc={score:.2f}\.ckpt", best.name)
        assert len(list(best.parent.glob("best-*.ckpt"))) == 2
        assert (best.parent / "last.ckpt").exists()

    def test_s107_s116_accuracy_is_what_sklearn_says(self, finished: tuple[Path, str]) -> None:
        """The Trainer's test_acc against the classification report of the same weights on the same images."""
        _, out = finished
        tested = float(re.search(r"test_acc (\S+)", out)[1])  # type: ignore[index]
        reported = float(re.search(r"accuracy +(\d\.\d\d) +30", out)[1])  # type: ignore[index]
        assert abs(tested - reported) < 0.11, "up to three of thirty: the Trainer computes in bfloat16, the report not"

    def test_s117_the_summary_counts_the_parameters(self, finished: tuple[Path, str]) -> None:
        _, out = finished
        assert "Model created with 323,498 parameters" in out
        assert re.search(r"323 K +Total params", out)

    def test_s106_s115_it_is_loaded_with_its_hyperparameters(self, finished: tuple[Path, str]) -> None:
        _, out = finished
        saved = torch.load(line_after("Best model path:", out), weights_only=True)
        assert saved["hyper_parameters"] == {"num_classes": 10, "learning_rate": 1e-3, "dropout_rate": 0.3}

    def test_s118_s119_s120_s121_s122_it_is_served(self, finished: tuple[Path, str]) -> None:
        folder, out = finished
        assert (folder / "lightning_model_scripted.pt").stat().st_size > 100_000
        assert 0 < float(line_after("Confidence:", out)) <= 1
        assert line_after("Logger directory:", out) == "lightning_logs/cifar10_cnn/v1.0"
        assert "tensorboard --logdir lightning_logs'" in out
        assert list((folder / "lightning_logs/cifar10_cnn/v1.0").glob("events.out.tfevents.*"))
        assert "8. Production-ready inference pipeline" in out


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_s03_c03_as_a_run_it_is_killed_and_repeats_neither_fit_nor_test(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    command = ["python", str(Path(__file__).parent / "scripts" / "killed.py"), str(journal)]
    arguments = ["--folder", str(tmp_path / "work"), "--epochs", "2", "--images", "240"]
    run = Session(
        tmp_path,
        nodes=1,
        trainer={"command": command, "args": arguments},
        checkpoint={"uri": f"file://{tmp_path / 'checkpoints'}", "every": {"steps": 1}},
    )
    out, _ = run.start(env={**os.environ, "MPLBACKEND": "Agg"}).communicate(timeout=800)
    assert run.process is not None
    assert run.process.returncode == 0, out
    lines = journal.read_text().splitlines()
    first, second, third = (part.split("\n") for part in "\n".join(lines).split("a life begins\n")[1:])
    assert [line for line in first if line.startswith("step")] == ["step 1", "step 2", "step 3"]
    assert [line for line in second if line.startswith("step")] == ["step 3", "step 4"], "step 2 was saved"
    assert lines.count("tested") == 1
    assert run.status["restarts"]["total"] == 2, json.dumps(run.status)
    best, done = third  # neither a step, nor a validation, nor a test
    assert done == "done"
    assert best.startswith(f"best {tmp_path / 'checkpoints' / 'artifacts' / 'cifar10_cnn' / 'v1.0' / 'checkpoints'}/")
    assert ckpt.read(best.removeprefix("best "))["global_step"] in (2, 4), "it outlives the pod"
