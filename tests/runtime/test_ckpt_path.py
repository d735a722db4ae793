"""ckpt_path: exact resumes from one file, of ours and of Lightning's; what "best", "last" … stand for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.checkpoint import ckpt
from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.trainer.run import Run
from tests.runtime.build import Memory, Net, Validated, data, loader, trainer


class Drops(Validated):
    """Dropout, Adam, a schedule, means over the epoch: everything that a resume could get wrong."""

    def __init__(self) -> None:
        super().__init__(self.optimizer)
        self.drop = torch.nn.Dropout(0.5)
        self.means: list[float] = []
        self.starts: list[int] = []

    @staticmethod
    def optimizer(module: Any) -> Any:
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        return {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 1, gamma=0.5)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = (self.layer(self.drop(x)) - y).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def on_train_epoch_start(self) -> None:
        self.starts.append(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        assert self.trainer is not None
        self.means.append(float(self.trainer.callback_metrics["loss_epoch"]))


def weights(module: torch.nn.Module) -> list[Any]:
    return [p.tolist() for p in module.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Drops]:
    """Three epochs of six steps, with a file of every step."""
    folder = tmp_path_factory.mktemp("whole")
    L.seed_everything(3)
    model = Drops()
    keep = ModelCheckpoint(folder, "s{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    trainer(folder, callbacks=[keep], max_epochs=3).fit(model, loader(shuffle=True), loader())
    return folder, model


@pytest.mark.parametrize("step", [1, 5, 6, 7, 12, 17, 18])
def test_s50_a_fit_resumes_exactly_from_a_file(tmp_path: Path, whole: tuple[Path, Drops], step: int) -> None:
    folder, model = whole
    L.seed_everything(99)
    again = Drops()
    runner = trainer(tmp_path, max_epochs=3)
    runner.fit(again, loader(shuffle=True), loader(), ckpt_path=folder / f"s{step}.ckpt")
    assert weights(again) == weights(model)
    assert again.means == model.means[step // 6 :]
    assert again.starts == list(range(-(-step // 6), 3))
    assert (runner.global_step, runner.current_epoch) == (18, 3)


def test_s50_a_fit_that_ended_inside_of_an_epoch_goes_on_there(tmp_path: Path, whole: tuple[Path, Drops]) -> None:
    L.seed_everything(3)
    model = Drops()
    runner = trainer(tmp_path, max_epochs=-1, max_steps=8)
    runner.fit(model, loader(shuffle=True), loader())
    runner.save_checkpoint(tmp_path / "cut.ckpt")
    again = Drops()
    trainer(tmp_path, max_epochs=3).fit(again, loader(shuffle=True), loader(), ckpt_path=tmp_path / "cut.ckpt")
    assert weights(again) == weights(whole[1])


def test_s50_the_file_has_lightnings_keys(whole: tuple[Path, Drops]) -> None:
    saved = torch.load(whole[0] / "s7.ckpt", weights_only=True)
    assert saved.keys() >= {
        "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
        "lr_schedulers",
    }  # fmt: skip
    assert (saved["epoch"], saved["global_step"]) == (1, 7)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"] == 1


def test_s50_ckpt_path_words(tmp_path: Path) -> None:
    def runner(**more: Any) -> L.Trainer:
        keep = ModelCheckpoint(tmp_path, "{step}", "val_loss", save_top_k=2, save_last=True)
        return trainer(tmp_path, callbacks=[keep], **more)

    first = runner(max_epochs=3)
    model = Validated()
    first.fit(model, loader(), loader())
    best = ckpt.read(first.best_model_path)
    evaluated = Validated()
    (values,) = first.validate(evaluated, loader(), ckpt_path="best", verbose=False)
    assert torch.equal(evaluated.layer.weight, best["state_dict"]["layer.weight"])
    assert values["val_loss"] == pytest.approx(float(first.checkpoint_callback.best_model_score))
    assert first.ckpt_path == first.best_model_path
    predicted = Validated()
    first.predict(predicted, loader(), ckpt_path=12)
    assert torch.equal(predicted.layer.weight, ckpt.read(tmp_path / "step=12.ckpt")["state_dict"]["layer.weight"])
    for word in ("last", "latest"):
        more = runner(max_epochs=4)
        more.fit(Validated(), loader(), loader(), ckpt_path=word)
        assert (more.global_step, more.current_epoch) == (24, 4), word
        for path in tmp_path.glob("*"):
            if "24" in path.name or path.name == "last-v1.ckpt":
                path.unlink()


def test_s114_without_a_model_the_best_is_tested(tmp_path: Path) -> None:
    class Tested(Validated):
        def test_step(self, batch: Any, batch_idx: int) -> Any: ...

    runner = trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, "{step}", "val_loss", mode="max")])
    model = Tested()
    runner.fit(model, loader(), loader())
    assert runner.best_model_path.endswith("step=6.ckpt"), "the first epoch has the highest loss"
    last = model.layer.weight.clone()
    runner.test(dataloaders=loader())
    assert not torch.equal(model.layer.weight, last)
    assert torch.equal(model.layer.weight, ckpt.read(runner.best_model_path)["state_dict"]["layer.weight"])


def test_s50_ckpt_path_that_leads_nowhere(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    runner = trainer(tmp_path, callbacks=[keep])
    runner.fit(Validated(), loader(), loader())
    for given, message in (
        ("last", r'"last", but there is no last.ckpt in .*give "latest"'),
        (7, r"ckpt_path=7: no .ckpt file of that step in .*; there are those of step 6, 12"),
        (tmp_path / "gone.ckpt", r"no checkpoint file .*gone.ckpt; the folder has step=12.ckpt, step=6.ckpt"),
        (tmp_path, "holds no checkpoints of a run"),
        ("hpc", "is Lightning's own"),
        ("", "ckpt_path is empty, as best_model_path is while nothing was saved"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path)]).fit(
                Validated(), loader(), loader(), ckpt_path=given
            )
    with pytest.raises(ConfigurationError, match='"best", but no ModelCheckpoint of this Trainer has saved any'):
        trainer(tmp_path).validate(Validated(), loader(), ckpt_path="best")
    with pytest.raises(ConfigurationError, match=r'"latest", but there is no .ckpt file in any folder'):
        trainer(tmp_path).validate(Validated(), loader(), ckpt_path="latest")
    with pytest.raises(ConfigurationError, match="weights_only=False would unpickle"):
        runner.fit(Validated(), loader(), loader(), weights_only=False)


def test_s85_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.more = torch.nn.Linear(1, 1)

    runner = trainer(tmp_path)
    runner.fit(Net(), loader())
    runner.save_checkpoint(tmp_path / "net.ckpt")
    message = (
        r"does not fit Other. missing in the checkpoint: more.weight, more.bias; of another shape: layer.weight "
        r"\(\[1, 3\] in the checkpoint, \[1, 4\] in the model\)"
    )
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path).fit(Other(), loader(), ckpt_path=tmp_path / "net.ckpt")

    class Two(Net):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.parameters()]

    with pytest.raises(ConfigurationError, match="the checkpoint has 1 optimizers, configure_optimizers returned 2"):
        trainer(tmp_path).fit(Two(), loader(), ckpt_path=tmp_path / "net.ckpt")


def test_c03_a_restarted_script_goes_on_from_its_own_checkpoints(tmp_path: Path, whole: tuple[Path, Drops]) -> None:
    """ckpt_path says where the first life begins; the second goes on where that one was interrupted."""
    folder, model = whole

    def script(checkpoints: Memory) -> Drops:
        L.seed_everything(99)
        again = Drops()
        run = trainer(tmp_path, checkpoints, max_epochs=3)
        run.fit(again, loader(shuffle=True), loader(), ckpt_path=folder / "s7.ckpt")
        return again

    memory = Memory(every_steps=4)
    script(memory)
    assert [saved.step for saved in memory.saved] == [8, 12, 16, 18], "multiples of four, and the end"
    assert weights(script(memory.forget_after(1))) == weights(model)


def test_s50_resumes_from_the_checkpoints_of_a_run(tmp_path: Path) -> None:
    """A prefix is a ckpt_path as well: the newest one of it."""
    uri = (tmp_path / "run").as_uri()
    run = Run(Environment(checkpoint_uri=uri, checkpoint_every_steps=4))
    L.seed_everything(3)
    model = Drops()
    trainer(tmp_path, run=run, max_epochs=2).fit(model, loader(shuffle=True), loader())
    for place in (uri, tmp_path / "run"):
        again = Drops()
        runner = trainer(tmp_path, max_epochs=2)
        runner.fit(again, loader(shuffle=True), loader(), ckpt_path=place)
        assert (runner.global_step, weights(again)) == (12, weights(model))


def test_s50_save_checkpoint_inside_a_hook_and_of_an_evaluation(tmp_path: Path) -> None:
    class Saves(Drops):
        def on_train_batch_end(self, *_: Any) -> None:
            assert self.trainer is not None
            if self.global_step == 4:
                self.trainer.save_checkpoint(tmp_path / "hook.ckpt", weights_only=True)
                assert (tmp_path / "hook.ckpt").exists()

    trainer(tmp_path).fit(Saves(), loader(), loader())
    assert ckpt.read(tmp_path / "hook.ckpt")["global_step"] == 4
    runner = trainer(tmp_path)
    with pytest.raises(ConfigurationError, match="nothing to save yet"):
        runner.save_checkpoint(tmp_path / "a.ckpt")
    model = Validated()
    runner.validate(model, loader(), verbose=False)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(ckpt.read(tmp_path / "a.ckpt")["state_dict"]["layer.weight"], model.layer.weight)


def test_s50_a_completed_fit_can_be_saved_after_a_restart(tmp_path: Path) -> None:
    def script(checkpoints: Memory, name: str) -> dict[str, Any]:
        L.seed_everything(3)
        runner = trainer(tmp_path, checkpoints)
        runner.fit(Drops(), loader(), loader())
        runner.save_checkpoint(tmp_path / name)
        return ckpt.read(tmp_path / name)

    memory = Memory()
    first, second = script(memory, "first.ckpt"), script(memory, "second.ckpt")
    assert torch.equal(first["state_dict"]["layer.weight"], second["state_dict"]["layer.weight"])
    assert second["optimizer_states"][0]["state"].keys() == first["optimizer_states"][0]["state"].keys()
    assert second["everstep"]["fit"] == first["everstep"]["fit"]


def test_s50_hooks_see_and_change_the_checkpoint(tmp_path: Path) -> None:
    class Hooked(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            del checkpoint["state_dict"]["layer.bias"]
            checkpoint["mine"] = torch.ones(2)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert torch.equal(checkpoint["mine"], torch.ones(2))
            checkpoint["state_dict"]["layer.bias"] = torch.full((1,), 7.0)

    runner = trainer(tmp_path)
    runner.fit(Hooked(), loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert list(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]) == ["layer.weight"]
    assert Hooked.load_from_checkpoint(tmp_path / "a.ckpt").layer.bias.item() == 7.0


def test_s50_a_stream_goes_on_at_its_batch(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(data())

    def batches() -> Any:
        return torch.utils.data.DataLoader(Stream(), batch_size=4)

    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    L.seed_everything(3)
    model = Drops()
    trainer(tmp_path, callbacks=[keep]).fit(model, batches(), loader())
    again = Drops()
    trainer(tmp_path).fit(again, batches(), loader(), ckpt_path=tmp_path / "step=8.ckpt")
    assert weights(again) == weights(model)


class Growing(L.LightningDataModule):
    """More samples and larger batches from epoch to epoch."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        return loader(samples=8 * (epoch + 1), batch_size=4 + 2 * epoch, shuffle=True)

    def val_dataloader(self) -> Any:
        return loader()


class Planned(Drops):
    """Asks for its data before a resume knows the epoch."""

    def configure_optimizers(self) -> Any:
        assert self.trainer is not None
        assert self.trainer.estimated_stepping_batches == 4 * 2
        return super().configure_optimizers()


@pytest.mark.parametrize("model", [Drops, Planned])
@pytest.mark.parametrize("every", [1, 2])
def test_a_fit_whose_loader_grows_resumes_at_every_boundary(tmp_path: Path, every: int, model: type[Drops]) -> None:
    def grow(*callbacks: Any, **more: Any) -> Drops:
        L.seed_everything(3)
        net = model()
        options = {"reload_dataloaders_every_n_epochs": every, "num_sanity_val_steps": 0}
        trainer(tmp_path, callbacks=list(callbacks), max_epochs=4, **options).fit(net, Growing(), **more)
        return net

    folder = tmp_path / "kept"
    steps = ModelCheckpoint(folder, "s{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    expected = weights(grow(steps))
    files = sorted(folder.glob("*.ckpt"))
    assert len(files) == {1: 2 + 3 + 3 + 4, 2: 2 + 2 + 3 + 3}[every]
    for file in files:
        assert weights(grow(ckpt_path=file)) == expected, file.name


def test_a_file_of_an_epoch_that_the_fit_does_not_have_is_refused(tmp_path: Path, whole: Any) -> None:
    folder, _ = whole
    with pytest.raises(ConfigurationError, match=r"of epoch 2, and Trainer\(max_epochs=1\).*raise max_epochs"):
        trainer(tmp_path, max_epochs=1).fit(Drops(), loader(shuffle=True), loader(), ckpt_path=folder / "s18.ckpt")
    trainer(tmp_path, max_epochs=2).fit(Drops(), loader(shuffle=True), loader(), ckpt_path=folder / "s18.ckpt")


def test_new_layers_that_strict_loading_lets_pass_are_not_in_the_optimizers_state(tmp_path: Path, whole: Any) -> None:
    class Larger(Drops):
        strict_loading = False

        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(ConfigurationError, match=r"the state of Adam does not fit: .*group.*strict=False"):
        trainer(tmp_path, max_epochs=3).fit(Larger(), loader(), loader(), ckpt_path=whole[0] / "s7.ckpt")
