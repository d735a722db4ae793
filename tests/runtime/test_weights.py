"""Callbacks that change or average weights: the numbers, and that a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import everstep as L
from everstep.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from everstep.errors import ConfigurationError
from tests.runtime.build import Memory, Net, Validated, loader, trainer
from tests.runtime.peer import lightning, quiet
from tests.runtime.processes import run_ranks


class Weights(L.Callback):
    """Notes the weight after each optimizer step."""

    def __init__(self) -> None:
        self.each: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.each.append(pl_module.layer.weight.detach().clone())


def resumes_exactly(folder: Path, callback: Any, module: Any, epochs: int = 4, **more: Any) -> Any:
    """Fit whole, and from each of its checkpoints: equal bits. Returns the whole one's module."""
    kept = Memory(every_steps=4)
    torch.manual_seed(1)
    trainer(folder, kept, max_epochs=epochs, callbacks=[callback()], **more).fit(whole := module(), loader(), loader())
    for count in range(1, len(kept.saved)):
        torch.manual_seed(count)
        again = module()
        resumed = trainer(folder, kept.forget_after(count), max_epochs=epochs, callbacks=[callback()], **more)
        resumed.fit(again, loader(), loader())
        for name, value in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), (count, name)
    return whole


def test_weight_averaging_leaves_the_mean(tmp_path: Path) -> None:
    weights, net = Weights(), Net()
    trainer(tmp_path, callbacks=[weights, WeightAveraging()]).fit(net, loader())
    assert torch.allclose(net.layer.weight, torch.stack(weights.each).mean(0), atol=1e-6)


def test_ema_every_few_steps_from_a_step_on(tmp_path: Path) -> None:
    weights, net = Weights(), Net()
    ema = EMAWeightAveraging(decay=0.5, update_every_n_steps=2, update_starting_at_step=3)
    trainer(tmp_path, callbacks=[weights, ema]).fit(net, loader())
    average = weights.each[4]
    for step in (6, 8, 10):
        average = average.lerp(weights.each[step], 0.5)
    assert torch.allclose(net.layer.weight, average, atol=1e-6)
    assert ema.n_averaged == 4


def test_validation_sees_the_average_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Looks(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if not self.trainer.sanity_checking and batch_idx == 0:
                seen.append(self.layer.weight.detach().clone())

    weights, net = Weights(), Looks()
    trainer(tmp_path, callbacks=[weights, WeightAveraging()]).fit(net, loader(), loader())
    plain_weights, plain = Weights(), Net()
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(seen[0], torch.stack(weights.each[:6]).mean(0), atol=1e-6)
    assert torch.allclose(seen[1], torch.stack(weights.each).mean(0), atol=1e-6)
    assert not torch.equal(weights.each[5], seen[0])
    assert plain_weights.each == []


@pytest.mark.parametrize(
    "callback", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.8, update_starting_at_epoch=1)]
)
def test_averaging_resumes_exactly_and_checkpoints_hold_the_average(tmp_path: Path, callback: Any) -> None:
    whole = resumes_exactly(tmp_path, callback, Validated)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[callback()], enable_checkpointing=True)
    runner.fit(net := Validated(), loader(), loader())
    path = runner.best_model_path
    assert torch.equal(Validated.load_from_checkpoint(path).layer.weight, net.layer.weight)
    assert whole is not net


def normed(base: Any) -> type:
    """A module whose weights and whose validation depend on batch statistics; notes what validations say."""

    class Small(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), []

        def loss(self, batch: Any) -> Any:
            return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self.loss(batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Small


def with_average(library: Any, folder: Path, kind: str, more: Any, epochs: int, ckpt_path: Any = None) -> Any:
    torch.manual_seed(1)
    net, kept = normed(library.LightningModule)(), library.callbacks.ModelCheckpoint(folder, f"{epochs}")
    with quiet():
        library.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[getattr(library.callbacks, kind)(**more), kept], num_sanity_val_steps=0,
        ).fit(net, loader(), loader(8), ckpt_path=ckpt_path)  # fmt: skip
    return net, torch.load(kept.best_model_path, weights_only=False)


def equal(left: Any, right: Any) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("WeightAveraging", {}),
        ("WeightAveraging", {"use_buffers": False}),
        ("EMAWeightAveraging", {"decay": 0.5, "update_every_n_steps": 2, "update_starting_at_step": 9}),
        ("EMAWeightAveraging", {"decay": 0.5, "use_buffers": False, "update_starting_at_epoch": 1}),
    ],
)
def test_s04_averages_and_their_files_are_lightnings(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    (ours, our_file), (theirs, their_file) = (
        with_average(library, tmp_path / name, kind, more, 3) for name, library in (("o", L), ("l", lightning))
    )
    assert ours.seen == theirs.seen
    assert equal(ours.state_dict(), theirs.state_dict())
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert equal(our_file[key], their_file[key]), key
    assert our_file["callbacks"][kind] == their_file["callbacks"][kind]


@pytest.mark.parametrize(("writes", "reads"), [(L, lightning), (lightning, L)])
def test_s04_s85_a_fit_with_an_average_goes_on_from_the_others_file(tmp_path: Path, writes: Any, reads: Any) -> None:
    more = {"decay": 0.5, "update_every_n_steps": 4}
    whole, _ = with_average(writes, tmp_path, "EMAWeightAveraging", more, 3)
    with_average(writes, tmp_path, "EMAWeightAveraging", more, 2)
    resumed, _ = with_average(reads, tmp_path / "r", "EMAWeightAveraging", more, 3, tmp_path / "2.ckpt")
    assert equal(resumed.state_dict(), whole.state_dict())


def test_s04_an_average_without_an_update_leaves_what_was_trained(tmp_path: Path) -> None:
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    trainer(tmp_path, max_epochs=1, callbacks=[EMAWeightAveraging(update_starting_at_step=99)]).fit(net, loader())
    trainer(tmp_path, max_epochs=1).fit(plain, loader())
    assert torch.equal(net.layer.weight, plain.layer.weight)


class Normed(Validated):
    """With batch normalisation, a scheduler and more than one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: Any = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def swa(**more: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(**{"swa_lrs": 0.01, "swa_epoch_start": 0.5, "annealing_epochs": 1, **more})


def averaged(library: Any, folder: Path, normed: bool, scheduled: bool, **more: Any) -> tuple[list[float], Any]:
    """The learning rates of the epochs, and what the fit leaves behind, by either library."""
    rates: list[float] = []

    class Small(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8) if normed else nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def on_train_epoch_start(self) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)] if scheduled else []

    torch.manual_seed(1)
    net = Small()
    library.Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[library.callbacks.StochasticWeightAveraging(swa_lrs=0.01, **more)],
    ).fit(net, loader())  # fmt: skip
    return rates[:5], net


@pytest.mark.parametrize(
    ("normed", "scheduled", "more"),
    [
        (False, False, {"swa_epoch_start": 2}),
        (False, True, {"swa_epoch_start": 0.5, "annealing_epochs": 1}),
        (False, True, {"swa_epoch_start": 3, "annealing_epochs": 2, "annealing_strategy": "linear"}),
        (True, False, {"swa_epoch_start": 0.5, "annealing_epochs": 1}),
    ],
)
def test_s04_stochastic_weight_averaging_has_lightnings_numbers(
    tmp_path: Path, normed: bool, scheduled: bool, more: dict[str, Any]
) -> None:

    rates, net = averaged(L, tmp_path, normed, scheduled, **more)
    with quiet():
        their_rates, theirs = averaged(lightning, tmp_path, normed, scheduled, **more)
    assert rates == pytest.approx(their_rates)
    if normed:  # their epoch for the statistics ends with a step, by the gradients of training's last batch
        for parameter, ours in zip(theirs.parameters(), net.parameters(), strict=True):
            parameter.data += 0.01 * ours.grad
    for name, value in theirs.state_dict().items():
        assert torch.allclose(net.state_dict()[name], value, atol=1e-6), name
    if normed:
        assert net.layer[1].momentum == 0.1


def test_stochastic_weight_averaging_resumes_exactly(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, swa, Normed, epochs=5)


def test_stochastic_weight_averaging_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"swa_epoch_start=1\.5"):
        swa(swa_epoch_start=1.5)
    with pytest.raises(ConfigurationError, match="give an epoch from 1"):
        swa(swa_epoch_start=0)
    with pytest.raises(ConfigurationError, match="swa_lrs=-1"):
        swa(swa_lrs=-1)
    with pytest.raises(ConfigurationError, match="a part of max_epochs, which is not given"):
        trainer(tmp_path, max_epochs=-1, max_steps=3, callbacks=[swa()]).fit(Net(), loader())
    with pytest.raises(ConfigurationError, match="StochasticWeightAveraging and EMAWeightAveraging do not go together"):
        trainer(tmp_path, callbacks=[swa(), EMAWeightAveraging()])


class Backboned(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)

    def loss(self, batch: Any) -> Any:
        return nn.functional.mse_loss(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]


def test_backbone_finetuning(tmp_path: Path) -> None:
    rates: list[list[float]] = []
    weights: list[torch.Tensor] = []

    class Notes(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
            weights.append(pl_module.backbone[0].weight.detach().clone())

    net = Backboned()
    before = net.backbone[0].weight.detach().clone()
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_ratio_lr=0.2)
    trainer(tmp_path, max_epochs=4, callbacks=[finetuning, Notes()]).fit(net, loader(), loader())
    assert [len(group) for group in rates] == [1, 1, 2, 2]
    assert torch.equal(weights[1], before)
    assert not torch.equal(weights[2], before)
    assert rates[2] == pytest.approx([0.1, 0.02])


def test_finetuning_resumes_exactly(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1), Backboned)


def test_finetuning_tools() -> None:
    net = Backboned()
    BaseFinetuning.freeze(net.backbone, train_bn=True)
    assert [p.requires_grad for p in net.backbone.parameters()] == [False, False, True, True]
    BaseFinetuning.freeze(net.backbone, train_bn=False)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert not net.backbone[1].track_running_stats
    BaseFinetuning.make_trainable(net.backbone)
    assert all(p.requires_grad for p in net.backbone.parameters())
    assert BaseFinetuning.flatten_modules([net.backbone, net.head]) == [net.backbone[0], net.backbone[1], net.head]


def test_a_missing_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs Net\.backbone"):
        trainer(tmp_path, callbacks=[BackboneFinetuning()]).fit(Net(), loader())


@pytest.mark.ranks
def test_what_joins_later_is_averaged_over_the_ranks(tmp_path: Path) -> None:
    alone = run_ranks("finetuning.py", [tmp_path / "alone", 8], launched=False)
    ranks = run_ranks("finetuning.py", [tmp_path / "ranks", 4], world=2)
    assert alone.returncode == ranks.returncode == 0, alone.stderr + ranks.stderr
    one = torch.load(tmp_path / "alone0.pt")
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"ranks{rank}.pt").items():
            assert torch.allclose(value, one[name], atol=1e-6), (rank, name)
