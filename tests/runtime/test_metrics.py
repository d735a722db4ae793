"""everstep.metrics, and metric objects given to self.log."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import everstep as pl
from everstep.errors import ConfigurationError
from tests.runtime.build import Memory, trainer
from tests.runtime.processes import run_ranks
from tests.runtime.test_logs import Sink

CLASSES = 7


def labelled(samples: int = 50, batch_size: int = 8) -> DataLoader[Any]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 5, generator=random)
    return DataLoader(TensorDataset(x, torch.randint(CLASSES, (samples,), generator=random)), batch_size=batch_size)


class Classifier(pl.LightningModule):
    """Logs metric objects in every stage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(5, CLASSES)
        self.train_accuracy = pl.metrics.Accuracy()
        self.val_accuracy = pl.metrics.Accuracy()
        self.f1 = pl.metrics.F1Score(task="multiclass", num_classes=CLASSES, average="macro")
        self.epochs: list[float] = []

    def forward(self, x: Any) -> Any:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        scores = self(x)
        self.train_accuracy(scores.softmax(1), y)
        self.log("acc", self.train_accuracy, on_step=True, on_epoch=True, prog_bar=True)
        self.f1(scores, y)
        self.log("f1", self.f1, on_step=False, on_epoch=True)
        return cross_entropy(scores, y)

    def on_train_epoch_end(self) -> None:
        self.epochs.append(float(self.trainer.callback_metrics["acc_epoch"]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_accuracy(self(batch[0]), batch[1])
        self.log("val_acc", self.val_accuracy)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize(
    ("preds", "target", "expected"),
    [
        (torch.eye(5)[[0, 3, 3, 1]], torch.tensor([0, 3, 1, 1]), 0.75),  # scores; not every class is there
        (torch.tensor([4, 9, 1]), torch.tensor([4, 9, 2]), 2 / 3),  # labels
        (torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0, 1, 0]), 2 / 3),  # probabilities
        (torch.tensor([-3.0, 3.0, 0.1, -0.1]), torch.tensor([0, 1, 1, 1]), 0.75),  # logits
        (torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), None),  # pixels
    ],
)
def test_s72_accuracy_without_arguments_infers_the_task(preds: Any, target: Any, expected: float | None) -> None:
    accuracy = pl.metrics.Accuracy()
    if expected is None:
        expected = accuracy_score(target.flatten(), preds.argmax(1).flatten())
    assert float(accuracy(preds, target)) == pytest.approx(expected)
    assert float(accuracy.compute()) == pytest.approx(expected)
    accuracy.reset()
    assert accuracy.compute().isnan()


def test_s72_accuracy_equals_sklearn_over_uneven_batches() -> None:
    accuracy, predicted, true = pl.metrics.Accuracy(), [], []
    for x, y in labelled(50, 8):
        scores = x @ torch.ones(5, CLASSES) + torch.randn(len(y), CLASSES)
        batch = accuracy(scores, y)
        assert float(batch) == pytest.approx(accuracy_score(y, scores.argmax(1)))
        predicted += scores.argmax(1).tolist()
        true += y.tolist()
    assert float(accuracy.compute()) == pytest.approx(accuracy_score(true, predicted))


def test_s72_accuracy_refuses_what_does_not_go_together() -> None:
    accuracy = pl.metrics.Accuracy()
    with pytest.raises(ValueError, match=r"shape \(4, 3\) and target of shape \(5,\)"):
        accuracy(torch.rand(4, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="whole numbers"):
        accuracy(torch.rand(4), torch.rand(4))
    accuracy(torch.rand(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="began with multiclass"):
        accuracy(torch.rand(4), torch.zeros(4, dtype=torch.long))


def test_s72_accuracy_with_arguments_is_torchmetrics() -> None:
    import torchmetrics

    accuracy = pl.metrics.Accuracy(task="multiclass", num_classes=3)
    assert isinstance(accuracy, torchmetrics.Metric)
    assert float(accuracy(torch.tensor([0, 1]), torch.tensor([0, 2]))) == 0.5


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_s107_a_module_that_holds_accuracies_is_traced(tmp_path: Path) -> None:
    module = Classifier()
    del module.f1
    x = torch.randn(3, 5)
    torch.jit.trace(module, x).save(str(tmp_path / "traced.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "traced.pt"))(x), module(x))


def test_s107_accuracy_needs_no_torchmetrics() -> None:
    code = (
        "import sys, everstep as pl; pl.metrics.Accuracy(); print([m for m in ('torchmetrics', 'torchvision') if m in "
        "sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_s73_any_metric_of_torchmetrics_and_ones_own() -> None:
    class Wrong(pl.metrics.Metric):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

        def update(self, preds: Any, target: Any) -> None:
            self.count += (preds != target).sum()

        def compute(self) -> Any:
            return self.count

    wrong = Wrong()
    assert wrong(torch.tensor([1, 2]), torch.tensor([1, 3])) == 1
    bleu = pl.metrics.text.BLEUScore(n_gram=2)
    assert float(bleu(["the cat sat"], [["the cat sat"]])) == 1.0
    with pytest.raises(AttributeError, match="'Acuracy'"):
        pl.metrics.Acuracy  # noqa: B018


def test_torchvision_can_be_imported_after_everstep() -> None:
    code = "import everstep, torchvision; print(torchvision.transforms.CenterCrop(2), torchvision.models.resnet18)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert "CenterCrop" in done.stdout, done.stderr


def test_s71_step_value_from_forward_and_epoch_value_from_compute(tmp_path: Path) -> None:
    sink, module, loader = Sink(), Classifier(), labelled()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    runner = trainer(tmp_path, max_epochs=2, logger=sink, log_every_n_steps=1)
    runner.fit(module, loader, loader)

    again = Classifier()
    again.load_state_dict(before)
    steps, epochs, f1s = [], [], []
    optimizer = again.configure_optimizers()
    for _ in range(2):
        predicted, true = [], []
        for x, y in loader:
            scores = again(x)
            steps.append(accuracy_score(y, scores.argmax(1)))
            predicted, true = predicted + scores.argmax(1).tolist(), true + y.tolist()
            optimizer.zero_grad()
            cross_entropy(scores, y).backward()
            optimizer.step()
        epochs.append(accuracy_score(true, predicted))
        f1s.append(f1_score(true, predicted, average="macro"))
    logged = [row["acc_step"] for _, row in sink.rows if "acc_step" in row]
    assert logged == pytest.approx(steps)
    assert [row["acc_epoch"] for _, row in sink.rows if "acc_epoch" in row] == pytest.approx(epochs)
    assert [row["f1"] for _, row in sink.rows if "f1" in row] == pytest.approx(f1s)
    assert module.epochs == pytest.approx(epochs), "it is there in on_train_epoch_end"
    assert "acc_step" in runner.progress_bar_metrics
    with torch.no_grad():
        expected = accuracy_score(loader.dataset.tensors[1], again(loader.dataset.tensors[0]).argmax(1))  # type: ignore[attr-defined]
    assert runner.test(module, loader, verbose=False) == [{"val_acc": pytest.approx(expected)}]
    assert module.val_accuracy.total == 0, "reset after the evaluation"


def test_s71_the_state_of_a_metric_in_the_middle_of_an_epoch_is_in_the_checkpoint(tmp_path: Path) -> None:
    kept = Memory(every_steps=2)
    whole = trainer(tmp_path, kept, max_epochs=2)
    whole.fit(Classifier(), labelled(), labelled())
    for count in range(1, len(kept.saved)):
        resumed, module = trainer(tmp_path, kept.forget_after(count), max_epochs=2), Classifier()
        resumed.fit(module, labelled(), labelled())
        for name in ("acc_epoch", "f1"):
            assert torch.equal(resumed.callback_metrics[name], whole.callback_metrics[name]), (count, name)


def test_s71_a_collection_by_log_dict(tmp_path: Path) -> None:
    class Module(Classifier):
        def __init__(self) -> None:
            super().__init__()
            each: dict[str, Any] = {"task": "multiclass", "num_classes": CLASSES}
            self.both = pl.metrics.MetricCollection(
                {"p": pl.metrics.Precision(**each), "r": pl.metrics.Recall(**each)}, prefix="my_"
            )

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.both.update(self(batch[0]), batch[1])
            self.log_dict(self.both)

    module = Module()
    (result,) = trainer(tmp_path).test(module, labelled(), verbose=False)
    (accuracy,) = trainer(tmp_path).test(Classifier(), labelled(), verbose=False)
    assert result == {"my_p": pytest.approx(accuracy["val_acc"]), "my_r": pytest.approx(accuracy["val_acc"])}


def test_s71_mistakes_with_metric_objects_are_named(tmp_path: Path) -> None:
    class NoAttribute(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            metrics = [pl.metrics.MeanMetric()]
            metrics[0].update(1.0)
            self.log("mean", metrics[0])

    with pytest.raises(ConfigurationError, match="the MeanMetric is no attribute of the module"):
        trainer(tmp_path).test(NoAttribute(), labelled())

    class Matrix(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = pl.metrics.ConfusionMatrix(task="multiclass", num_classes=CLASSES)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.matrix(self(batch[0]), batch[1])
            self.log("matrix", self.matrix)

    with pytest.raises(
        ConfigurationError, match=r"compute\(\) of MulticlassConfusionMatrix gives more than one number"
    ):
        trainer(tmp_path).test(Matrix(), labelled())


@pytest.mark.ranks
@pytest.mark.parametrize("world", [2, 3])
def test_s74_metrics_over_ranks_count_each_sample_once(tmp_path: Path, world: int) -> None:
    """21 samples in batches of 4: the last round is uneven, one rank repeats a sample in training."""
    alone = run_ranks("metrics.py", [tmp_path / "alone", 4 * world], launched=False)
    ranks = run_ranks("metrics.py", [tmp_path / "ranks", 4], world=world)
    assert alone.returncode == ranks.returncode == 0, alone.stderr + ranks.stderr
    one, several = torch.load(tmp_path / "alone0.pt"), [torch.load(tmp_path / f"ranks{r}.pt") for r in range(world)]
    for values in several:
        assert values == pytest.approx(one)
    assert set(one) >= {"acc", "f1", "val_acc", "mean"}
