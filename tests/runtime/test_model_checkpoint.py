"""ModelCheckpoint, S-50: which files it keeps, under which names, with what in them; and the same as Lightning's."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as L
from everstep.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from everstep.checkpoint import ckpt
from everstep.environment import Environment
from everstep.errors import ConfigurationError, StorageError
from everstep.loggers import CSVLogger
from everstep.trainer.run import Run
from tests.runtime.build import Memory, Net, loader, trainer

SCORES = [0.5, 0.3, 0.4, 0.2, 0.9]


class Scored(Net):
    """Logs one of SCORES in each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = list(SCORES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any: ...

    def on_validation_epoch_end(self) -> None:
        assert self.trainer is not None
        if not self.trainer.sanity_checking:
            self.log("score", self.scores.pop(0))


def fit(folder: Path, *callbacks: L.Callback, model: Any = None, **more: Any) -> L.Trainer:
    """Six steps an epoch."""
    runner = trainer(folder, callbacks=list(callbacks), **{"max_epochs": 5, **more})
    runner.fit(model or Scored(), loader(), loader())
    return runner


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


def test_s50_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "best-{epoch:02d}-{score:.2f}", "score", save_top_k=3, save_last=True)
    fit(tmp_path, keep)
    best = ["best-epoch=01-score=0.30", "best-epoch=02-score=0.40", "best-epoch=03-score=0.20"]
    assert names(tmp_path) == [*(f"{name}.ckpt" for name in best), "last.ckpt"]
    assert keep.best_model_path == str(tmp_path / f"{best[2]}.ckpt")
    assert isinstance(keep.best_model_score, torch.Tensor)
    assert f"{keep.best_model_score:.4f}" == "0.2000"
    assert keep.kth_best_model_path == str(tmp_path / f"{best[1]}.ckpt")
    assert float(keep.kth_value) == pytest.approx(0.4)
    assert {Path(p).name: round(float(s), 3) for p, s in keep.best_k_models.items()} == {
        f"{best[0]}.ckpt": 0.3, f"{best[1]}.ckpt": 0.4, f"{best[2]}.ckpt": 0.2,
    }  # fmt: skip
    assert keep.last_model_path == str(tmp_path / "last.ckpt")
    saved = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in [*best, "last"]}
    assert [saved[name]["global_step"] for name in [*best, "last"]] == [12, 18, 24, 30]
    assert [saved[name]["epoch"] for name in [*best, "last"]] == [1, 2, 3, 4]


def test_s50_mode_max_and_a_nan(tmp_path: Path) -> None:
    model = Scored()
    model.scores = [0.1, float("nan"), 0.3, 0.2]
    keep = ModelCheckpoint(tmp_path, "{epoch}", "score", mode="max", save_top_k=2)
    fit(tmp_path, keep, model=model, max_epochs=4)
    assert names(tmp_path) == ["epoch=2.ckpt", "epoch=3.ckpt"]
    assert keep.best_model_path.endswith("epoch=2.ckpt")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["epoch=4-step=30"]),
        ({"save_top_k": -1}, [f"epoch={e}-step={6 * e + 6}" for e in range(5)]),
        ({"save_top_k": 0}, []),
        ({"save_top_k": 0, "save_last": True}, ["last"]),
        ({"every_n_epochs": 2, "save_top_k": -1}, ["epoch=1-step=12", "epoch=3-step=24"]),
        ({"every_n_train_steps": 8, "save_top_k": -1}, ["epoch=1-step=8", "epoch=2-step=16", "epoch=3-step=24"]),
        ({"every_n_train_steps": 0, "save_top_k": -1}, []),
        ({"train_time_interval": timedelta(0), "filename": "{step}"}, ["step=30"]),
        ({"train_time_interval": timedelta(hours=1), "save_top_k": -1}, []),
        ({"filename": "e{epoch:03d}-{missing:d}", "auto_insert_metric_name": False}, ["e004-0"]),
    ],
    ids=str,
)  # fmt: skip
def test_s50_when_and_under_which_name(tmp_path: Path, options: Any, expected: list[str]) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, **options))
    assert names(tmp_path) == sorted(f"{name}.ckpt" for name in expected)


def test_s50_a_taken_name_gets_a_version(tmp_path: Path) -> None:
    for _ in range(2):
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_last=True)
        fit(tmp_path, keep, max_epochs=1)
    assert names(tmp_path) == ["epoch=0-v1.ckpt", "epoch=0.ckpt", "last-v1.ckpt", "last.ckpt"]
    assert keep.last_model_path.endswith("last-v1.ckpt")
    fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", enable_version_counter=False), max_epochs=1)
    assert len(names(tmp_path)) == 4
    same = ModelCheckpoint(tmp_path / "same", "one", "score", save_top_k=2)
    fit(tmp_path, same, max_epochs=2)
    assert names(tmp_path / "same") == ["one-v1.ckpt", "one.ckpt"], "two of its own do not replace each other"


def test_s50_a_link_to_the_last(tmp_path: Path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, save_last="link"))
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=4-step=30.ckpt"
    with pytest.raises(ConfigurationError, match="memory://x has no links; give save_last=True"):
        fit(tmp_path, ModelCheckpoint("memory://x", save_last="link"))


def test_s50_weights_only(tmp_path: Path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path, "w", save_weights_only=True))
    saved = torch.load(tmp_path / "w.ckpt", weights_only=True)
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & saved.keys()
    assert saved["state_dict"].keys() == Scored().state_dict().keys()
    with pytest.raises(ConfigurationError, match="holds weights only"):
        trainer(tmp_path).fit(Net(), loader(), ckpt_path=tmp_path / "w.ckpt")


def test_s50_goes_to_the_loggers_folder_and_is_there_by_default(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "mine", "v1.0")
    runner = L.Trainer(max_epochs=1, logger=logger, enable_progress_bar=False, run=trainer(tmp_path).run)
    runner.fit(Scored(), loader(), loader())
    folder = tmp_path / "mine" / "v1.0" / "checkpoints"
    assert names(folder) == ["epoch=0-step=6.ckpt"]
    assert runner.checkpoint_callback.best_model_path == str(folder / "epoch=0-step=6.ckpt")
    assert isinstance(runner.callbacks[-1], ModelCheckpoint)
    other = ModelCheckpoint()
    assert L.Trainer(callbacks=[other, L.Callback()], logger=False, run=runner.run).checkpoint_callbacks == [other]
    assert not L.Trainer(enable_checkpointing=False, run=runner.run).checkpoint_callbacks
    with pytest.raises(ConfigurationError, match="enable_checkpointing=False, but ModelCheckpoint is among"):
        L.Trainer(enable_checkpointing=False, callbacks=other)


def test_s50_in_a_run_it_outlives_the_pod(tmp_path: Path) -> None:
    environment = Environment(checkpoint_uri="memory://bucket/run")
    run = Run(environment, open_checkpoints=lambda _: None)
    runner = L.Trainer(
        max_epochs=1, logger=CSVLogger(tmp_path, "mine", "v1"), enable_progress_bar=False, run=run
    )  # fmt: skip
    runner.fit(Scored(), loader(), loader())
    place = "memory://bucket/run/artifacts/mine/v1/checkpoints/epoch=0-step=6.ckpt"
    assert runner.best_model_path == place
    assert ckpt.read(place)["global_step"] == 6
    more = trainer(tmp_path)
    more.fit(Scored(), loader(), loader(), ckpt_path=place)
    assert more.global_step == 12


def test_s50_c09_the_metric_is_of_the_saved_weights(tmp_path: Path) -> None:
    """A save that is due when the metric is old waits for the next validation."""
    keep = ModelCheckpoint(tmp_path, "{step}-{score:.1f}", "score", save_top_k=-1, every_n_train_steps=4)
    fit(tmp_path, keep, max_epochs=3)
    assert names(tmp_path) == ["step=12-score=0.3.ckpt", "step=18-score=0.4.ckpt", "step=6-score=0.5.ckpt"]


def test_s50_c09_a_metric_of_an_epochs_end_is_waited_for(tmp_path: Path) -> None:
    class Ends(Net):
        def on_train_epoch_end(self) -> None:
            self.log("score", SCORES[self.current_epoch])

    keep = ModelCheckpoint(tmp_path, "{step}-{score:.1f}", "score", save_top_k=-1, every_n_train_steps=4)
    trainer(tmp_path, callbacks=[keep], max_epochs=2).fit(Ends(), loader())
    assert names(tmp_path) == ["step=12-score=0.3.ckpt", "step=6-score=0.5.ckpt"]


def test_s50_a_metric_of_each_step(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", "train_loss", save_top_k=-1, every_n_train_steps=4)
    fit(tmp_path, keep, max_epochs=2)
    assert names(tmp_path) == ["step=12.ckpt", "step=4.ckpt", "step=8.ckpt"]


def test_s50_validations_inside_an_epoch(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}-{score:.1f}", "score", save_top_k=-1)
    fit(tmp_path, keep, max_epochs=2, val_check_interval=3)
    assert names(tmp_path) == [f"step={s}-score={v}.ckpt" for s, v in ((12, 0.2), (3, 0.5), (6, 0.3), (9, 0.4))]


def test_s50_a_metric_that_is_never_logged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"monitors 'val_acc', which was not logged.*: score, train_loss\."):
        fit(tmp_path, ModelCheckpoint(tmp_path, monitor="val_acc"))


def test_s50_bad_arguments() -> None:
    for options, message in (
        ({"mode": "best"}, 'give "min" or "max"'),
        ({"save_top_k": -2}, "at least -1"),
        ({"save_top_k": 1.5}, "a whole number"),
        ({"save_last": "x"}, 'give True, False or "link"'),
        ({"filename": 3}, "give a text"),
        ({"filename": "{epoch"}, r"expected '}' before end of string: each name is in braces"),
        ({"every_n_epochs": 1.5}, "a whole number"),
        ({"save_top_k": 3}, "without a monitor does not know"),
        ({"every_n_epochs": -1}, "at least 0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 1}, "takes one of"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ModelCheckpoint(**options)  # type: ignore[arg-type]


class Breaks(Scored):
    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == 8:
            raise RuntimeError("broken")


def test_s50_s89_a_checkpoint_when_the_fit_fails(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "m-{step}", save_on_exception=True, every_n_epochs=9)
    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, keep, OnExceptionCheckpoint(tmp_path), model=Breaks())
    assert names(tmp_path) == ["m-step=8.ckpt", "on_exception.ckpt"]
    assert ckpt.read(tmp_path / "on_exception.ckpt")["global_step"] == 8


def test_s50_what_was_asked_for_before_a_failure_is_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        fit(tmp_path, ModelCheckpoint(tmp_path), model=Breaks())
    assert names(tmp_path) == ["epoch=0-step=6.ckpt"]
    assert not list(tmp_path.glob(".writing*"))


def test_s50_a_file_is_not_deleted_for_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ckpt.write

    def full(place: str, *state: Any) -> None:
        if "step=12" in place:
            raise StorageError("no space left")
        write(place, *state)

    monkeypatch.setattr(ckpt, "write", full)
    with pytest.raises(StorageError, match="no space left"):
        fit(tmp_path, ModelCheckpoint(tmp_path))
    assert names(tmp_path) == ["epoch=0-step=6.ckpt"]


def test_s50_state_comes_back_with_a_restart_and_lost_files_are_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "kept"

    def script(checkpoints: Memory) -> ModelCheckpoint:
        keep = ModelCheckpoint(folder, "{epoch}-{score:.1f}", "score", save_top_k=2)
        L.seed_everything(1)
        model = Scored()
        runner = trainer(tmp_path, checkpoints, callbacks=[keep], max_epochs=4)
        model.scores = SCORES[len(checkpoints.saved) // 6 :]
        runner.fit(model, loader(), loader())
        return keep

    memory = Memory(every_steps=1)
    whole = script(memory)
    before = names(folder)
    again = script(memory.forget_after(12))  # step 12, of 24
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert again.best_k_models == whole.best_k_models
    assert again.best_model_path == whole.best_model_path
    assert names(folder) == before == ["epoch=1-score=0.3.ckpt", "epoch=3-score=0.2.ckpt"], "no -v1"
    done = script(memory)
    assert done.best_model_path == whole.best_model_path, "also of a fit that was completed before"
