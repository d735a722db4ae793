"""Ordinals, resume at any boundary, the agreed step and the notes: one process, checkpoints in memory."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import everstep as L
from everstep import rng
from everstep.board import Board
from everstep.environment import Environment
from everstep.errors import ConfigurationError, NonFiniteLossError, Stopped
from everstep.trainer.run import Run
from everstep_protocol.messages import Stage
from tests.runtime.build import ALONE, Memory, Net, Validated, loader, trainer


class Drops(Validated):
    """With dropout, so that random states matter, and a record of steps taken."""

    def __init__(self) -> None:
        super().__init__(self.optimizer)
        self.drop = torch.nn.Dropout(0.5)
        self.steps: list[int] = []

    @staticmethod
    def optimizer(module: Any) -> Any:
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        return {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 1, gamma=0.5)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps.append(self.global_step)
        x, y = batch
        loss = (self.layer(self.drop(x)) - y).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss


def script(folder: Path, checkpoints: Memory | None, **more: Any) -> tuple[Drops, L.Trainer, list[dict[str, float]]]:
    L.seed_everything(2)
    model, runner = Drops(), trainer(folder, checkpoints, **more)
    runner.fit(model, loader(shuffle=True), loader())
    return model, runner, runner.test(model, loader())


def weights(model: torch.nn.Module) -> list[Any]:
    return [p.tolist() for p in model.parameters()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, Drops, L.Trainer, list[dict[str, float]]]:
    memory = Memory(every_steps=1)
    return (memory, *script(tmp_path_factory.mktemp("whole"), memory))


@pytest.mark.parametrize("saves", range(1, 14))
def test_resume_at_every_boundary(tmp_path: Path, whole: Any, saves: int) -> None:
    """12 steps in 2 epochs: 11 boundaries with a save, then the ends of fit and test."""
    memory, model, runner, result = whole
    assert len(memory.saved) == 13
    again, other, same_result = script(tmp_path, memory.forget_after(saves))
    assert weights(again) == weights(model)
    assert same_result == result
    assert {k: float(v) for k, v in other.callback_metrics.items() if k != "test_loss"} == {
        k: float(v) for k, v in runner.callback_metrics.items() if k != "test_loss"
    }
    assert again.steps == list(range(min(saves, 12), 12)), "no step is taken twice"
    assert (other.global_step, other.current_epoch) == (12, 2)


def test_without_random_states_the_resume_differs(tmp_path: Path, whole: Any) -> None:
    memory, model, _, _ = whole
    run = Run(ALONE, open_checkpoints=lambda _: memory.forget_after(3), restore_rng=False)
    L.seed_everything(99)
    again = Drops()
    trainer(tmp_path, run=run).fit(again, loader(shuffle=True), loader())
    assert weights(again) != weights(model)


def test_a_resume_skips_the_sanity_check_and_a_begun_epochs_start(tmp_path: Path, whole: Any) -> None:
    calls: list[str] = []

    class Watch(L.Callback):
        def on_sanity_check_start(self, *_: Any) -> None:
            calls.append("sanity")

        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            calls.append(f"epoch {trainer.current_epoch}")

    script(tmp_path, whole[0].forget_after(3), callbacks=Watch())
    assert calls == ["epoch 1"]


def test_callbacks_and_the_users_own_state_come_back(tmp_path: Path) -> None:
    class Counts(L.Callback):
        def __init__(self) -> None:
            self.count = 0
            self.mine: Any = None

        def on_train_batch_end(self, *_: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count = state_dict["count"]

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = self.count * 10

        def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            self.mine = checkpoint["mine"]

    memory, counts = Memory(every_steps=5), Counts()
    script(tmp_path, memory, callbacks=counts)
    again = Counts()
    script(tmp_path, memory.forget_after(1), callbacks=again)
    assert (again.count, again.mine) == (12, 50)
    done = Counts()
    script(tmp_path, memory, callbacks=done)
    assert (done.count, done.mine) == (12, 120), "also from a completed fit"


def test_two_fits_each_resume_into_their_own_model(tmp_path: Path) -> None:
    def two(checkpoints: Memory) -> tuple[list[Any], list[Any], list[int]]:
        L.seed_everything(2)
        run = Run(ALONE, open_checkpoints=lambda _: checkpoints)
        first, second = Drops(), Drops()
        trainer(tmp_path, run=run, max_epochs=1).fit(first, loader(), loader())
        second.load_state_dict(first.state_dict())
        second.layer.reset_parameters()  # draws: the state of the generators after the first fit matters
        trainer(tmp_path, run=run, max_epochs=1).fit(second, loader(), loader())
        return weights(first), weights(second), second.steps

    memory = Memory(every_steps=2)
    first, second, _ = two(memory)
    names = [saved.name for saved in memory.saved]
    assert names == ["0-2", "0-4", "1-6", "1-8", "1-10", "2-12"], "steps count through the run"
    for saves in range(1, 7):
        again = two(memory.forget_after(saves))
        assert again[:2] == (first, second), names[saves - 1]
    assert two(memory.forget_after(4))[2] == [2, 3, 4, 5]


class Draws(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Shuffles itself and draws noise, from this process's generators."""

    def __iter__(self) -> Any:
        for index in torch.randperm(20).tolist():
            yield torch.randn(3) + index, torch.ones(1)


class DrawsElsewhere(Draws):
    """From python's and numpy's. Of the two normals that numpy makes at once one lies outside of its words."""

    def __iter__(self) -> Any:
        for index in torch.randperm(20).tolist():
            yield torch.tensor([random.random(), np.random.randn(), float(index)]), torch.ones(1)


class Remembers(Draws):
    """Knows its place, and no order but one."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Any:
        while self.place < 20:
            self.place += 1
            yield torch.full((3,), float(self.place)), torch.ones(1)
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


@pytest.mark.parametrize("dataset", [Draws, DrawsElsewhere, Remembers])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stream_resumes_at_every_boundary(tmp_path: Path, dataset: Any, accumulate: int) -> None:
    def train(checkpoints: Memory) -> list[Any]:
        L.seed_everything(2)
        model = Drops()
        runner = trainer(tmp_path, checkpoints, accumulate_grad_batches=accumulate)
        runner.fit(model, DataLoader(dataset(), batch_size=3 if dataset is DrawsElsewhere else 4), loader())
        return weights(model)

    memory = Memory(every_steps=1)
    expected = train(memory)
    assert len(memory.saved) == {1: 10, 3: 4}[accumulate] + {1: 4, 3: 2}[accumulate] * (dataset is DrawsElsewhere)
    for saves in range(1, len(memory.saved)):
        assert train(memory.forget_after(saves)) == expected, saves


def test_a_stream_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole random states are asked for when something is saved, not at each batch; where nothing can be, never."""
    asked: list[int] = []
    ask, ask_python = np.random.get_state, random.getstate
    monkeypatch.setattr(np.random, "get_state", lambda legacy=True: (asked.append(1), ask(legacy=legacy))[1])
    monkeypatch.setattr(random, "getstate", lambda: (asked.append(1), ask_python())[1])
    noted: list[int] = []
    note = rng.Moment
    monkeypatch.setattr(rng, "Moment", lambda: (noted.append(1), note())[1])

    def times(**more: Any) -> tuple[int, int]:
        asked.clear()
        noted.clear()
        still = Net(lambda module: torch.optim.SGD(module.parameters(), lr=0.0))
        L.Trainer(accelerator="cpu", max_epochs=1, **more).fit(still, DataLoader(Draws(), batch_size=1))
        return len(asked), len(noted)

    kept = times(default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False, logger=False)
    assert kept[0] < 10 < 20 < kept[1]
    assert sum(times(barebones=True)) < 10


def test_a_stream_refuses_another_world(tmp_path: Path) -> None:
    memory = Memory(every_steps=2)
    trainer(tmp_path, memory).fit(Net(), DataLoader(Draws(), batch_size=4))
    memory.saved[0].shared["checkpoint"]["everstep"]["fit"]["world_size"] = 2
    with pytest.raises(
        ConfigurationError, match="that 2 ranks have read cannot be divided anew over 1: run with 2 ranks"
    ):
        trainer(tmp_path, memory.forget_after(1)).fit(Net(), DataLoader(Draws(), batch_size=4))
    with pytest.raises(ConfigurationError, match=r"training on a stream .* now gives a dataset with positions"):
        trainer(tmp_path, memory.forget_after(1)).fit(Net(), loader())


def test_another_order_of_calls_is_refused(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"call number 1 of this script is test, but .* it is fit"):
        trainer(tmp_path, whole[0].forget_after(13)).test(Drops(), loader())
    with pytest.raises(ConfigurationError, match="is test, but"):
        trainer(tmp_path, whole[0].forget_after(2)).test(Drops(), loader())


def test_a_prediction_is_made_again(tmp_path: Path) -> None:
    memory = Memory()

    def predictions() -> Any:
        L.seed_everything(2)
        model, runner = Net(), trainer(tmp_path, memory)
        runner.fit(model, loader())
        return torch.cat(runner.predict(model, loader()))

    first = predictions()
    assert first.shape == (24, 1)
    assert torch.equal(predictions(), first)
    assert len(memory.saved) == 2


def test_another_model_is_refused_with_names(tmp_path: Path, whole: Any) -> None:
    class Other(Drops):
        def __init__(self) -> None:
            super().__init__()
            self.extra = torch.nn.Linear(1, 1)

    with pytest.raises(ConfigurationError, match=r"does not fit Other(.|\n)*extra"):
        trainer(tmp_path, whole[0].forget_after(2)).fit(Other(), loader(), loader())


def test_other_data_is_refused(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(ConfigurationError, match="24 samples in an epoch, now there are 40"):
        trainer(tmp_path, whole[0].forget_after(2)).fit(Drops(), loader(samples=40), loader())


@pytest.mark.parametrize("reload", [0, 1])
def test_a_smaller_batch_size_keeps_the_steps(tmp_path: Path, whole: Any, reload: int) -> None:
    """After running out of memory: micro-batches get smaller, the global batch stays."""
    options = {"reload_dataloaders_every_n_epochs": reload}
    again, runner = Drops(), trainer(tmp_path, whole[0].forget_after(2), **options)
    runner.fit(again, loader(batch_size=2), loader())
    assert runner.global_step == 12
    assert again.steps[:4] == [2, 2, 3, 3], "two micro-batches a step"


def test_a_broken_loss_is_never_saved(tmp_path: Path) -> None:
    class Diverges(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (math.nan if self.global_step == 3 else 1.0)

    memory = Memory(every_steps=2)
    with pytest.raises(NonFiniteLossError, match="step 4"):
        trainer(tmp_path, memory).fit(Diverges(), loader())
    assert [saved.step for saved in memory.saved] == [2]


# The board.


@pytest.fixture
def board(tmp_path: Path) -> Any:
    made = Board.create(tmp_path / "board", 1)
    yield made
    made.close()


def test_stops_at_the_agreed_step_and_goes_on_from_there(tmp_path: Path, board: Board) -> None:
    memory = Memory()

    class Interrupts(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                board.propose(1, 5)
                board.commit()

    with pytest.raises(Stopped) as stopped:
        script(tmp_path, memory, seat=board.seat(0), callbacks=Interrupts())
    assert stopped.value.code == 85
    assert [saved.step for saved in memory.saved] == [5]
    assert board.stage(0) is Stage.SAVING
    model, runner, _ = script(tmp_path, memory)
    assert model.steps == [5, 6, 7, 8, 9, 10, 11]
    assert weights(model) == weights(script(tmp_path, None)[0])
    assert runner.global_step == 12


def test_a_test_stops_at_its_next_batch(tmp_path: Path, board: Board) -> None:
    class Slow(Net):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            assert batch_idx == 0
            board.commit()

    with pytest.raises(Stopped):
        trainer(tmp_path, seat=board.seat(0)).test(Slow(), loader())


def test_notes_tell_progress_and_checkpoints(tmp_path: Path, board: Board) -> None:
    notes: list[dict[str, Any]] = []

    class Reads(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            note = board.note(0)
            if note and note not in notes:
                notes.append(note)

    script(tmp_path, Memory(every_steps=4), seat=board.seat(0), callbacks=Reads(), log_every_n_steps=1)
    saved = [note for note in notes if note["last_checkpoint"]]
    assert [note["progress"]["step"] for note in saved][:2] == [4, 8]
    assert saved[0]["last_checkpoint"]["step"] == 4
    progress = saved[0]["progress"]
    assert (progress["max_steps"], progress["epoch"], progress["stage"]) == (12, 0, "fit")
    assert progress["loss"] > 0
    assert progress["samples_per_second"] > 0
    assert progress["step_seconds"] > 0
    assert progress["learning_rate"] == 0.01
    assert progress["metrics"]["loss_step"] == pytest.approx(progress["loss"])
    last = board.note(0)
    assert last is not None
    assert (last["progress"]["step"], last["progress"]["stage"]) == (12, "test")
    assert board.step(0) == 12


# The environment.


def test_environment_is_read_in_one_place() -> None:
    read = Environment.read({"RANK": "2", "WORLD_SIZE": "3", "EVERSTEP_SEED": "7", "EVERSTEP_GENERATION": "4"})
    assert (read.rank, read.world_size, read.seed, read.generation, read.launched) == (2, 3, 7, 4, True)
    assert Environment.read({}) == Environment()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "three"}, "WORLD_SIZE is 'three'"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK is 3"),
        ({"EVERSTEP_CHECKPOINT_RESUME": "maybe"}, "'auto' or 'never'"),
        ({"EVERSTEP_CHECKPOINT_EVERY_STEPS": "0"}, "at least 1"),
    ],
)
def test_bad_environment(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Environment.read(variables)


def test_a_note_that_is_too_long_for_the_board_goes_without_its_metrics(tmp_path: Path, board: Board) -> None:
    class Talks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for number in range(24):
                self.log(f"{number}-{'x' * 400}", loss.detach())
            return loss

    trainer(tmp_path, seat=board.seat(0), log_every_n_steps=1).fit(Talks(), loader())
    note = board.note(0)
    assert note is not None
    assert note["progress"]["step"] == 12
    assert note["progress"]["metrics"] == {}
