"""torch.compile with self.log, DDP and FSDP: the same numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import everstep as L
from everstep.strategies import FSDPStrategy
from tests.runtime.build import trainer
from tests.runtime.strategies.models import Blocks, loader

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("default")]  # torch's own, in its compiler


def trained(tmp_path: Path, ranks: int = 1, backend: str | None = None, **more: Any) -> dict[str, Any]:
    L.seed_everything(5)
    torch._dynamo.reset()
    module = Blocks()
    given: Any = torch.compile(module, backend=backend) if backend else module
    runner = trainer(tmp_path, max_epochs=1, devices=ranks, accelerator="cpu", gradient_clip_val=0.5, **more)
    runner.fit(given, loader(6 // ranks, 24), loader(6 // ranks, 24))
    (result,) = runner.test(given, loader(6 // ranks, 24), verbose=False)
    return {
        "weights": module.state_dict(),
        "logged": {**runner.callback_metrics, **result},
        "steps": runner.global_step,
    }


def close(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["steps"] == b["steps"] == 4
    for part in ("weights", "logged"):
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            if "_step" not in name:  # a rank's own
                expected = torch.as_tensor(b[part][name], dtype=torch.float32)
                assert torch.allclose(torch.as_tensor(value, dtype=torch.float32), expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_c13_compiled_with_self_log(tmp_path: Path, backend: str) -> None:
    plain = trained(tmp_path)
    counters.clear()
    close(trained(tmp_path, backend=backend), plain)
    assert counters["stats"]["unique_graphs"] > 0, "it was compiled"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_c13_compiled_on_two_ranks(tmp_path: Path, strategy: str) -> None:
    chosen: Any = FSDPStrategy(start_method="fork") if strategy == "fsdp" else "ddp_fork"
    close(trained(tmp_path, 2, "aot_eager", strategy=chosen), trained(tmp_path))


def test_c13_self_log_is_kept_out_of_graphs_of_the_fits_own_module_only(tmp_path: Path) -> None:
    """Nothing is changed for other modules of the process, or for a copy, whose self.log would be the first one's."""
    plain = L.LightningModule.log
    module = Blocks()
    runner = trainer(tmp_path, max_steps=1, accelerator="cpu")
    runner.fit(torch.compile(module, backend="aot_eager"), loader(6, 24), loader(6, 24))
    assert L.LightningModule.log is plain
    assert "log" in vars(module)
    assert "log" not in vars(copy.deepcopy(module))
    assert "log" not in vars(Blocks())
