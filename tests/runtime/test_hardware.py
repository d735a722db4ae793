"""What `accelerator`, `devices`, `strategy` and `precision` mean, and who is found to have started the ranks."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import everstep as L
from everstep.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, TPUAccelerator, choose_accelerator
from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy, choose_strategy
from everstep.strategies.place import place
from tests.runtime.build import Net, loader, trainer

FOUR = Environment(kind="launcher", world_size=4, local_world_size=4, rank=3, local_rank=3)


def test_s26_cpu_and_auto_and_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = trainer(tmp_path, accelerator="cpu")
    assert isinstance(runner.accelerator, CPUAccelerator)
    print(runner.accelerator)
    assert capsys.readouterr().out == "cpu\n"
    expected = CUDAAccelerator if torch.cuda.is_available() else CPUAccelerator
    assert isinstance(trainer(tmp_path, accelerator="auto").accelerator, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ipu", "Graphcore"),
        ("hpu", "Gaudi"),
        ("mps", "Apple"),
        ("quantum", 'Give "cpu", "gpu", "tpu" or "auto"'),
        ("tpu", "pip install 'torch~=2.9.0' 'torch_xla"),
    ],
)
def test_s26_others_are_refused_with_the_way_out(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"accelerator='{name}'.*{message}".replace("[", r"\[")):
        trainer(tmp_path, accelerator=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_s26_gpu_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"accelerator='gpu': torch .*CUDA.*\"auto\" takes what is there"):
        trainer(tmp_path, accelerator="gpu")


class Four(Accelerator):
    """A kind of device of which this machine has four."""

    name = "four"

    @classmethod
    def count(cls) -> int:
        return 4

    def default_ranks(self) -> int:
        return 4

    _check = CUDAAccelerator._check


@pytest.mark.parametrize(
    ("devices", "indices"),
    [(1, [0]), (3, [0, 1, 2]), ("2", [0, 1]), ("auto", [0, 1, 2, 3]), (-1, [0, 1, 2, 3]), ("-1", [0, 1, 2, 3]),
     ([1, 3], [1, 3]), ("1,3", [1, 3]), ("2,", [2])],
)  # fmt: skip
def test_s27_devices(devices: Any, indices: list[int]) -> None:
    assert Four().parse(devices) == indices


@pytest.mark.parametrize("devices", [0, -2, "many", [], [1, 1], [True], True, None, 1.5, [-1], ""])
def test_s27_what_devices_are_none(devices: Any) -> None:
    with pytest.raises(ConfigurationError, match="a number of devices, a list of their indices"):
        Four().parse(devices)


def test_s27_too_many_devices() -> None:
    with pytest.raises(ConfigurationError, match="needs GPU 4, but this machine has 4"):
        Four().parse(5)


def test_s27_auto_is_one_rank_of_a_cpu(tmp_path: Path) -> None:
    assert trainer(tmp_path, devices="auto", accelerator="cpu").num_devices == 1


def test_s27_devices_and_nodes_agree_with_the_launcher() -> None:
    assert place(FOUR, Four(), "auto").root_device == torch.device("cpu")
    assert place(FOUR, Four()).devices == [0, 1, 2, 3]
    with pytest.raises(ConfigurationError, match="devices=2, but 4 ranks were started on this node"):
        place(FOUR, "cpu", 2)
    with pytest.raises(ConfigurationError, match="num_nodes=2, but the ranks were started on 1"):
        place(FOUR, "cpu", num_nodes=2)
    with pytest.raises(ConfigurationError, match="everstep launch --nnodes 2"):
        place(Environment(), "cpu", num_nodes=2)


def test_s28_strategies_by_name() -> None:
    assert type(choose_strategy("auto", 1)) is Strategy
    assert type(choose_strategy("auto", 2)) is DDPStrategy
    assert type(choose_strategy("fsdp", 2)) is FSDPStrategy
    assert type(choose_strategy("model_parallel", 2)) is ModelParallelStrategy
    unused = choose_strategy("ddp_find_unused_parameters_true")
    assert isinstance(unused, DDPStrategy)
    assert unused.options["find_unused_parameters"] is True
    spawned = choose_strategy("ddp_spawn_find_unused_parameters_false")
    assert isinstance(spawned, DDPStrategy)
    assert (spawned.start_method, spawned.options["find_unused_parameters"]) == ("spawn", False)
    assert choose_strategy("ddp_notebook").start_method == "fork"


def test_s28_ranks_are_started_only_where_nobody_has() -> None:
    assert place(Environment(), "cpu", 2).start_method == "spawn"
    assert place(Environment(), "cpu", 1).start_method is None
    assert place(FOUR, "cpu", strategy="ddp_spawn").start_method is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpp", "did you mean 'ddp'"),
        ("horovod", '"ddp" takes its place'),
        ("dp", "slower"),
        ("xyz", "there is no such"),
    ],
)
def test_s28_unknown_strategies(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"strategy='{name}': .*{message}"):
        choose_strategy(name)
    with pytest.raises(ConfigurationError, match="one device cannot train on 2 ranks"):
        choose_strategy("single_device", 2)


def fake_xla(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A torch_xla with four chips, which notes what is done with it."""
    did: list[str] = []
    modules: dict[str, Any] = {
        "torch_xla": SimpleNamespace(
            device=lambda index: torch.device("meta", index), sync=lambda wait: did.append(f"sync {wait}")
        ),
        "torch_xla.runtime": SimpleNamespace(addressable_device_count=lambda: 4),
        "torch_xla.core.xla_model": SimpleNamespace(get_memory_info=lambda device: {"bytes_used": 7}),
        "torch_xla.distributed.xla_backend": SimpleNamespace(),
    }
    monkeypatch.setattr("everstep.accelerators.tpu.find_spec", lambda name: object())
    monkeypatch.setattr("everstep.accelerators.tpu.import_module", lambda name: did.append(name) or modules[name])
    return did


def test_s60_tpu_behind_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    did = fake_xla(monkeypatch)
    tpu = choose_accelerator("tpu")
    assert isinstance(tpu, TPUAccelerator)
    assert tpu.parse("auto") == [0, 1, 2, 3]
    assert tpu.device(2) == torch.device("meta", 2)
    tpu.activate(tpu.device(0))
    tpu.synchronize(tpu.device(0))
    assert "torch_xla.distributed.xla_backend" in did
    assert did[-1] == "sync True"
    assert tpu.stats(tpu.device(0)) == {"bytes_used": 7.0}
    with pytest.raises(ConfigurationError, match="1 chip or all of its 4"):
        tpu.parse(2)


@pytest.mark.parametrize("manual", [False, True])
def test_s60_tpu_runs_what_was_recorded_after_each_step_and_before_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manual: bool
) -> None:
    did = fake_xla(monkeypatch)
    monkeypatch.setattr(TPUAccelerator, "device", lambda self, index: torch.device("cpu"))

    class Told(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            did.append("step")
            loss: torch.Tensor = super().training_step(batch, batch_idx)
            if not manual:
                return loss
            self.manual_backward(loss)
            self.optimizers().step()
            return None

    runner = trainer(tmp_path, accelerator="tpu", devices=1, max_epochs=1)
    runner.fit(Told(), loader(12))
    events = [what for what in did if what in ("step", "sync False")]
    assert events[:6] == ["step", "sync False"] * 3
    count = len(events)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    assert [what for what in did if what in ("step", "sync False")][count:] == ["sync False"]


def test_s11_tpu_in_a_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    did = fake_xla(monkeypatch)
    monkeypatch.setattr(TPUAccelerator, "device", lambda self, index: torch.device("cpu"))
    fabric = L.Fabric(accelerator="tpu", devices=1)
    net = torch.nn.Linear(3, 1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    fabric.backward(model(torch.ones(2, 3)).sum())
    optimizer.step()
    assert did.count("sync False") == 1


def test_s08_the_names_load_without_their_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: ModuleType = importlib.import_module("everstep.accelerators.tpu")
    assert loaded.TPUAccelerator.count() == 0
    assert "torch_xla" not in sys.modules


SLURM = {
    "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "40123",
}  # fmt: skip


def test_environment_slurm() -> None:
    found = Environment.read(SLURM)
    assert (found.kind, found.rank, found.world_size, found.local_rank, found.local_world_size) == ("slurm", 5, 8, 1, 4)
    assert (found.node_rank, found.num_nodes, found.master_address) == (1, 2, "gpu07")
    assert found.master_port == Environment.read({**SLURM, "SLURM_PROCID": "0"}).master_port
    assert found.launched
    assert Environment.read({**SLURM, "SLURM_JOB_NAME": "bash"}).kind == "single", "salloc has started no ranks"
    assert Environment.read({**SLURM, "MASTER_ADDR": "me", "MASTER_PORT": "77"}).master_address == "me"


@pytest.mark.parametrize(
    ("nodes", "first"), [("a1,a2", "a1"), ("n[1-3]-ib", "n1-ib"), ("n[009,11]", "n009"), ("one", "one")]
)
def test_environment_slurm_hosts(nodes: str, first: str) -> None:
    assert Environment.read({**SLURM, "SLURM_JOB_NODELIST": nodes}).master_address == first


def test_environment_launcher_wins_over_slurm() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    found = Environment.read({**SLURM, **torchrun, "MASTER_ADDR": "a", "MASTER_PORT": "1234"})
    assert (found.kind, found.rank, found.num_nodes, found.master_port) == ("launcher", 3, 2, 1234)


def test_environment_kubernetes_one_process_a_pod() -> None:
    pod = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "job-0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    found = Environment.read(pod)
    assert (found.kind, found.rank, found.local_rank, found.node_rank, found.num_nodes) == ("kubernetes", 1, 0, 1, 3)
    assert found.master_address == "job-0"


def test_environment_alone() -> None:
    found = Environment.read({})
    assert (found.kind, found.launched, found.world_size, found.num_nodes) == ("single", False, 1, 1)


def test_s111_what_the_example_prints(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="bf16-mixed is used instead"):
        runner = trainer(tmp_path, accelerator="cpu", precision=16, max_epochs=3)
    assert (runner.max_epochs, str(runner.accelerator), runner.precision) == (3, "cpu", "bf16-mixed")


def test_s06_objects_where_names_are(tmp_path: Path) -> None:
    strategy, accelerator, precision = DDPStrategy(), CPUAccelerator(), L.precision.TruePrecision("64-true")
    runner = trainer(tmp_path, strategy=strategy, accelerator=accelerator, precision=precision)
    assert runner.strategy is strategy
    assert runner.accelerator is accelerator
    assert runner.precision_plugin is precision
