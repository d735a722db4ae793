"""What a step costs beyond what the user's code does: counted, not timed. The figures are the benchmarks' matter."""

import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import everstep as L
from everstep.trainer import hooks
from tests.runtime.build import Net, Validated, loader, trainer

PACKAGE = str(Path(L.__file__).parent)


class Operations(TorchDispatchMode):
    """Every operation of torch that is carried out inside, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    def of_the_steps(self) -> "EachStep":
        return EachStep(self.__enter__, lambda: self.__exit__(None, None, None))


def bare(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    runner = L.Trainer(barebones=True, max_epochs=1, default_root_dir=folder)
    runner.callbacks.extend(callbacks)
    return runner


class EachStep(L.Callback):
    """Calls `begin` before the second step, and `end` after so many. Nothing is prepared for this hook."""

    steps = 8

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.begin, self.end = begin, end

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.begin()
        elif batch_idx == self.steps + 1:
            self.end()


def test_c11_c10_a_step_carries_out_the_operations_of_a_plain_loop_and_no_others(tmp_path: Path) -> None:
    """So there is no synchronisation either: `.item()` would be an operation (_local_scalar_dense)."""
    ours, by_hand = Operations(), Operations()
    bare(tmp_path, ours.of_the_steps()).fit(Net(), loader(40))

    plain, watch = Net(), by_hand.of_the_steps()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for index, batch in enumerate(loader(40)):
        watch.on_train_batch_start(None, None, batch, index)
        plain.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert Counter(ours.names) <= Counter(by_hand.names)
    fewer = Counter(by_hand.names) - Counter(ours.names)
    assert fewer, "zero_grad marks itself for torch.profiler"
    assert all(name.startswith("profiler.") for name in fewer)
    assert Counter(ours.names)["aten.mse_loss.default"] == EachStep.steps


def test_c11_s91_a_bare_step_enters_few_functions(tmp_path: Path) -> None:
    """All calls of Everstep's own Python functions, those of the user's module left out."""
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_qualname] += 1

    bare(tmp_path, EachStep(lambda: sys.setprofile(count), lambda: sys.setprofile(None))).fit(Net(), loader(40))
    assert calls["Automatic.run"] == EachStep.steps, "or the counter sees nothing"
    per_step = sum(calls.values()) / EachStep.steps
    assert per_step <= 10.5, calls


def test_c11_hooks_that_nobody_overrides_are_never_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: Counter[str] = Counter()

    def note(name: str) -> Any:
        return lambda *args, **kwargs: entered.update([name])

    # Of the base classes; those that do something by themselves in the base class are not hooks that are listened to.
    for name in hooks.HOOKS:
        for base in (L.LightningModule, L.Callback, L.LightningDataModule):
            if hasattr(base, name) and not name.startswith(("on_load", "on_save")):
                monkeypatch.setattr(base, name, note(f"{base.__name__}.{name}"))
    runner = trainer(tmp_path, max_epochs=1, callbacks=L.Callback())
    runner.fit(Validated(), loader(), loader())
    assert runner.global_step == 6
    assert entered == {}


def test_s91_nothing_of_a_step_is_kept(tmp_path: Path) -> None:
    """Batches and outputs go when the next ones come, in training and in evaluations."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most: list[int] = []

    class Large(Validated):
        def made(self, batch: Any) -> torch.Tensor:
            large = torch.ones(4, 100)
            alive.update([large, batch[0]])
            most.append(len(alive))
            return large

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "large": self.made(batch)}

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"large": self.made(batch)}

        test_step = validation_step

    net, runner = Large(), trainer(tmp_path, num_sanity_val_steps=0)
    gc.collect()
    gc.disable()  # nor does it take a search for cycles
    try:
        runner.fit(net, loader(), loader())
        runner.test(net, loader(), verbose=False)
    finally:
        gc.enable()
    assert len(most) == 12 + 12 + 6
    assert max(most) <= 6, "two tensors of this step, of the one before, and of the training step around a validation"


@pytest.mark.parametrize("collects", [True, False])
def test_importing_leaves_the_garbage_collector_as_it_was(collects: bool) -> None:
    before = "gc.enable()" if collects else "gc.disable()"
    script = f"import gc; {before}; import everstep; everstep.Trainer; print(gc.isenabled())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(collects)
