"""Profilers: reports by action, and nothing at all when there is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from everstep.errors import ConfigurationError
from everstep.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from tests.runtime.build import Validated, loader, trainer


def fit(folder: Path, profiler: Any) -> Any:
    runner = trainer(folder, max_epochs=1, profiler=profiler)
    runner.fit(Validated(), loader(), loader())
    return runner.profiler


def test_s41_simple(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiler = fit(tmp_path, "simple")
    assert isinstance(profiler, SimpleProfiler)
    calls = {action: len(times) for action, times in profiler.recorded_durations.items()}
    assert calls["training_step"] == calls["backward"] == calls["optimizer_step"] == 6
    assert calls["validation_step"] == 6 + 2, "with the sanity check"
    assert calls["train_dataloader_next"] in (6, 7)
    report = capsys.readouterr().out
    assert "SimpleProfiler, fit" in report
    assert "training_step" in report


def test_s41_advanced(tmp_path: Path) -> None:
    fit(tmp_path, AdvancedProfiler(tmp_path, "report", dump_stats=True))
    report = (tmp_path / "fit-report.txt").read_text()
    assert "== training_step" in report
    assert "(loss)" in report, "a function of the module's own"
    assert (tmp_path / "report.backward.prof").exists()


def test_s41_pytorch(tmp_path: Path) -> None:
    fit(tmp_path, PyTorchProfiler(tmp_path, "ops"))
    assert "aten::" in (tmp_path / "fit-ops.txt").read_text()
    names = {event.get("name") for event in json.loads((tmp_path / "fit-ops.json").read_text())["traceEvents"]}
    assert "training_step" in names


def test_s41_pytorch_by_shapes_and_what_it_does_not_take(tmp_path: Path) -> None:
    fit(tmp_path, PyTorchProfiler(tmp_path, "ops", True, table_kwargs={"header": "of each shape"}))
    table = (tmp_path / "fit-ops.txt").read_text()
    assert "Input Shapes" in table
    assert "of each shape" in table
    with pytest.raises(ConfigurationError, match="no argument emit_nvtx: run the script under `nsys"):
        PyTorchProfiler(emit_nvtx=True)
    with pytest.raises(ConfigurationError, match=r"no argument wiht_stack: torch.profiler.profile takes .*with_stack"):
        PyTorchProfiler(wiht_stack=True)


def test_s59_ones_own_actions_and_errors(tmp_path: Path) -> None:
    profiler = SimpleProfiler(tmp_path, "mine", extended=False)
    with profiler.profile("tokenize"):
        pass
    with pytest.raises(ValueError, match="inside"), profiler.profile("fails"):
        raise ValueError("inside")
    profiler.teardown("fit")
    assert {"tokenize", "fails"} <= set((tmp_path / "fit-mine.txt").read_text().split())
    with pytest.raises(ConfigurationError, match="profiler='fast': give one of"):
        trainer(tmp_path, profiler="fast")


def test_s59_no_profiler_wraps_nothing() -> None:
    def function() -> None: ...

    assert Profiler().timed("x", function) is function
