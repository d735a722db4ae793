"""Every public name of Lightning's packages, and every argument, is one here, or it is said what to use instead."""

import importlib
import inspect
import pkgutil
import warnings
from typing import Any

import pytest
import torch

import everstep as L
from everstep.errors import ConfigurationError
from everstep.launch import lightning_alias
from everstep.launch.lightning_alias import INSTEAD, instead_of
from everstep.precision import MixedPrecision, Precision, ScaledPrecision, TruePrecision
from tests.runtime.build import Net, loader, trainer
from tests.runtime.peer import lightning

PACKAGES = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies", "utilities")

#: Arguments that are not taken, and why.
NOT_TAKEN = {
    # Seams that place.py and the environment fill.
    "accelerator", "parallel_devices", "cluster_environment", "checkpoint_io", "precision_plugin",
    # Of process groups and their hooks: nothing acts on them.
    "process_group_backend", "timeout", "ddp_comm_state", "ddp_comm_hook", "ddp_comm_wrapper", "model_averaging_period",
    # FSDP1's; ours is activation_checkpointing_policy, and both forms of checkpoint are there.
    "activation_checkpointing", "state_dict_type", "save_distributed_checkpoint",
    # Looks and uploads of other products.
    "synchronous", "checkpoint_name", "add_file_policy",
    # torch.profiler has taken their place.
    "group_by_input_shapes", "emit_nvtx", "record_module_names", "table_kwargs",
}  # fmt: skip

#: Classes whose arguments go on as they are: to hooks, to nobody, to DeepSpeed's `config`.
ELSEWHERE = ("LambdaCallback", "Profiler", "DeepSpeedStrategy")


def names(package: str) -> dict[str, Any]:
    module = importlib.import_module(f"lightning.pytorch.{package}")
    public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    return {name: getattr(module, name) for name in public}


def arguments(function: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind not in kinds]


def taken(kind: type) -> set[str]:
    """Also by the classes that it hands the rest to."""
    return {name for base in kind.__mro__ for name in arguments(base.__init__)}  # type: ignore[misc]


@pytest.mark.parametrize("package", PACKAGES)
def test_s03_s100_every_name_is_here_or_it_is_said_what_to_use(package: str) -> None:
    ours, theirs = importlib.import_module(f"everstep.{package}"), names(package)
    assert theirs
    assert getattr(L, package) is ours, "an attribute, as pl.callbacks is"
    assert [name for name in theirs if not hasattr(ours, name) and name not in INSTEAD] == []


#: Names that only Lightning's own files use among each other.
INSIDES = {
    "CustomBarColumn", "CustomInfiniteTask", "CustomTimeColumn",
    "LightningDoublePrecisionModule",
    "MetricsTextColumn", "ProcessingSpeedColumn", "RegisterRecordFunction", "ScheduleWrapper", "TBroadcast", "TModel",
    "TReduce", "T_destination", "Tqdm", "call_register_accelerators", "clean_namespace", "collect_init_args", "convert",
    "convert_inf", "convert_tensors_to_scalars", "convert_to_tensors", "do_nothing_closure", "get_cpu_stats",
    "get_device_stats", "get_formatted_model_size", "get_human_readable_count", "get_init_args", "get_nvidia_gpu_stats",
    "get_standard_metrics", "has_iterable_dataset", "has_len", "has_len_all_ranks", "is_cuda_available",
    "load_hparams_from_tags_csv", "load_hparams_from_yaml", "multiplicative", "num_cuda_devices", "parse_batch_shape",
    "parse_class_init_keys", "remove_module_hooks", "save_hparams_to_tags_csv",
    "seed_everything", "sized_len", "update_hparams",
}  # fmt: skip


def submodules() -> list[str]:
    """That a script may import. The demos and servers are none of them."""
    left = ("demos", "serve", "app")
    found = [
        info.name
        for root in ("lightning.pytorch", "lightning.fabric")
        for info in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}.", onerror=lambda name: None)
    ]
    return [name for name in found if not any(part.startswith("_") or part in left for part in name.split("."))]


def test_s100_every_submodule_of_lightning_has_a_home_or_it_is_said_what_to_use() -> None:
    """And so has every public name in it."""
    missing = []
    names_seen = set()
    for name in submodules():
        try:
            home = lightning_alias._home(name)
        except lightning_alias.MissingInEverstep:
            missing += [name] if instead_of(name.split(".", 2)[2]) is None else []
            continue
        assert home is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, ours = importlib.import_module(name), importlib.import_module(home)
        own = [key for key, value in vars(theirs).items() if str(getattr(value, "__module__", "")).startswith(name)]
        public = {key for key in getattr(theirs, "__all__", own) if not key.startswith("_")}
        names_seen |= public
        missing += [
            f"{name}.{key}"
            for key in sorted(public - INSIDES)
            if not hasattr(ours, key) and instead_of(f"{name}.{key}".split(".", 2)[2]) is None
        ]
    assert not missing, "\n".join(missing)
    assert names_seen >= INSIDES, "nothing is excused that is not there"


@pytest.mark.parametrize(
    "path",
    [
        "accelerators.GPUAccelerator", "accelerators.IPUAccelerator", "callbacks.GPUStatsMonitor",
        "callbacks.XLAStatsMonitor", "callbacks.base.Callback", "core.decorators.auto_move_data",
        "core.lightning.LightningModule", "core.memory.ModelSummary", "core.saving.save_hparams_to_yaml",
        "data_loader", "is_wrapped", "logging.TensorBoardLogger", "loggers.TestTubeLogger",
        "loggers.base.LightningLoggerBase", "metrics.functional.accuracy", "plugins.ApexMixedPrecisionPlugin",
        "plugins.DDPShardedPlugin", "plugins.PrecisionPlugin", "plugins.training_type.DDPPlugin",
        "profiler.SimpleProfiler", "strategies.BaguaStrategy", "strategies.DDPFullyShardedNativeStrategy",
        "strategies.DDPSpawnStrategy", "strategies.HPUStrategy", "strategies.launchers", "TrainResult", "EvalResult",
        "utilities.AMPType", "utilities.parsing.str_to_bool",
    ],
)  # fmt: skip
def test_s100_names_of_earlier_lightnings_are_here_or_it_is_said_what_to_use(path: str) -> None:
    module, _, name = path.rpartition(".")
    try:
        home = lightning_alias._home(f"pytorch_lightning.{module}" if module else "pytorch_lightning")
    except lightning_alias.MissingInEverstep:
        home = None
    here = home is not None and hasattr(importlib.import_module(home), name)
    assert here or instead_of(path) is not None


@pytest.mark.parametrize("package", ["callbacks", "loggers", "profilers", "strategies"])
def test_s03_every_argument_is_taken(package: str) -> None:
    ours = importlib.import_module(f"everstep.{package}")
    missing = {
        f"{name}({argument}=…)"
        for name, kind in names(package).items()
        if inspect.isclass(kind) and hasattr(ours, name) and name not in ELSEWHERE
        for argument in arguments(kind.__init__)
        if argument not in taken(getattr(ours, name)) and argument not in NOT_TAKEN
    }
    # These are told the stage's folder when a call begins.
    assert missing <= {"PassThroughProfiler(dirpath=…)", "PassThroughProfiler(filename=…)"}


@pytest.mark.parametrize("name", ["CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"])
def test_s58_loggers_take_their_arguments_in_the_same_order(name: str) -> None:
    theirs, ours = (arguments(getattr(library.loggers, name).__init__) for library in (lightning, L))
    assert [argument for argument in theirs if argument not in NOT_TAKEN] == ours[: len(set(theirs) - NOT_TAKEN)]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("Trainer", verb) for verb in ("fit", "validate", "test", "predict", "save_checkpoint")),
        *(("LightningModule", name) for name in (
            "log", "log_dict", "all_gather", "manual_backward", "optimizer_step", "optimizer_zero_grad",
            "lr_scheduler_step", "clip_gradients", "configure_gradient_clipping", "load_from_checkpoint",
            "save_hyperparameters", "to_onnx", "to_torchscript", "optimizers", "toggle_optimizer",
            "untoggle_optimizer", "transfer_batch_to_device",
        )),
        *(("LightningDataModule", name) for name in ("from_datasets", "load_from_checkpoint", "save_hyperparameters")),
    ],
)  # fmt: skip
def test_s03_methods_take_their_arguments_in_the_same_order(kind: str, method: str) -> None:
    """So that positional ones mean the same."""
    theirs, ours = (arguments(getattr(getattr(library, kind), method)) for library in (lightning, L))
    assert [name for name in theirs if name != "cls"] == [name for name in ours if name != "cls"][: len(theirs)]


def test_s03_defaults_are_the_same() -> None:
    theirs, ours = (inspect.signature(library.Trainer).parameters for library in (lightning, L))
    differ = {name for name, argument in theirs.items() if ours[name].default != argument.default}
    assert differ == set()


def test_s04_every_hook_takes_the_same_arguments() -> None:
    for kind in ("Callback", "LightningModule"):
        for name, function in inspect.getmembers(getattr(lightning, kind), inspect.isfunction):
            if name.startswith("on_") and name != "on_gpu":
                assert arguments(function) == arguments(getattr(getattr(L, kind), name)), (kind, name)


def test_what_a_trainer_has_among_its_callbacks(tmp_path: Any) -> None:
    stopping, other = (L.callbacks.EarlyStopping("loss", patience=n) for n in (1, 2))
    other.mode = "max"  # so that their states are kept apart
    bar = L.callbacks.ProgressBar()
    runner = trainer(tmp_path, callbacks=[stopping, other, bar], devices=2, strategy="ddp_spawn", accelerator="cpu")
    assert (runner.early_stopping_callback, runner.early_stopping_callbacks) == (stopping, [stopping, other])
    assert runner.progress_bar_callback is bar
    assert runner.device_ids == [0, 1]
    quiet = trainer(tmp_path)
    assert quiet.early_stopping_callback is quiet.progress_bar_callback is None


def test_s06_plugins_by_lightnings_names(tmp_path: Any) -> None:
    from everstep.plugins import DoublePrecision, HalfPrecision
    from everstep.plugins import MixedPrecision as mixed

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    made: list[Precision] = [mixed("16-mixed", "cpu", scaler), mixed("bf16-mixed", "cpu"), HalfPrecision("bf16-true")]
    assert [type(precision) for precision in made] == [ScaledPrecision, MixedPrecision, TruePrecision]
    assert made[0].scaler is scaler  # type: ignore[attr-defined]
    assert [precision.name for precision in made] == ["16-mixed", "bf16-mixed", "bf16-true"]
    net = Net()
    trainer(tmp_path, plugins=[DoublePrecision()], max_epochs=1).fit(net, loader())
    assert net.layer.weight.dtype is torch.float64


def test_s85_arguments_of_load_from_checkpoint_that_cannot_work(tmp_path: Any) -> None:
    for kind in (Net, L.LightningDataModule):
        with pytest.raises(ConfigurationError, match=r"hparams_file='h.yaml': .*load_from_checkpoint\(path, width=3\)"):
            kind.load_from_checkpoint("a.ckpt", hparams_file="h.yaml")  # type: ignore[attr-defined]
        with pytest.raises(ConfigurationError, match=r"weights_only=False would unpickle.*convert --trust"):
            kind.load_from_checkpoint("a.ckpt", weights_only=False)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="weights_only=False would unpickle"):
        trainer(tmp_path).test(Net(), loader(), weights_only=False)


def test_all_gather_of_some_ranks_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"all_gather\(group=…\) is not supported"):
        Net().all_gather(torch.ones(1), group="some")  # type: ignore[arg-type]
