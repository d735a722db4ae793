"""Everstep under the names `lightning`, `lightning.pytorch`, `lightning.fabric`, `pytorch_lightning`, in this process.

For scripts that are not to be edited. A module or a name that Everstep does not have raises, with what to use instead.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from everstep.errors import ConfigurationError

#: To be put in front of PYTHONPATH for a process that shall have the alias from its start.
FOLDER = Path(__file__).parent

#: The Lightning whose names these are: what `pl.__version__` says, as scripts choose their imports by it.
LIGHTNING_VERSION = "2.6.0"

_ROOTS = ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning", "lightning_fabric")

#: Modules of Lightning whose content is elsewhere here. All others have the same path below `everstep`.
_MOVED = {
    "callbacks.progress": "everstep.callbacks",
    "core": "everstep",
    "core.datamodule": "everstep.data",
    "core.hooks": "everstep.module",
    "core.lightning": "everstep.module",
    "core.memory": "everstep.utilities.model_summary",
    "core.mixins": "everstep.hparams",
    "core.mixins.hparams_mixin": "everstep.hparams",
    "core.module": "everstep.module",
    "core.optimizer": "everstep.trainer.optimization",
    "core.saving": "everstep.module",
    "fabric": "everstep",
    "logging": "everstep.loggers",
    "profiler": "everstep.profilers",
    "profilers.base": "everstep.profilers",
    "trainer.supporters": "everstep.utilities",
    "trainer.trainer": "everstep.trainer",
    "utilities.apply_func": "everstep.utilities",
    "utilities.distributed": "everstep.utilities",
    "utilities.model_summary.model_summary": "everstep.utilities.model_summary",
    "wrappers": "everstep.fabric",
}

#: Packages that have all their names themselves: however Lightning calls a file in them, its names are these.
_PACKAGES = ("accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies")

#: Not `everstep.cli`, which is a command.
_NOT_OURS = ("cli",)

#: What people use that Everstep does not have, and what to do.
INSTEAD = {
    "LightningCLI": "build the Trainer in the script and read arguments with argparse",
    "cli": "build the Trainer in the script and read arguments with argparse",
    "tuner": "choose the learning rate and the batch size in the script",
    "Tuner": "choose the learning rate and the batch size in the script",
    "LearningRateFinder": "choose the learning rate in the script, and watch it with LearningRateMonitor",
    "BatchSizeFinder": "choose the batch size in the script, and watch memory with DeviceStatsMonitor",
    "ModelPruning": "call torch.nn.utils.prune in a Callback's on_train_epoch_end",
    "QuantizationAwareTraining": "use torch.ao.quantization in the module",
    "CometLogger": "TensorBoardLogger, WandbLogger, MLFlowLogger or CSVLogger, or a Logger of your own",
    "NeptuneLogger": "TensorBoardLogger, WandbLogger, MLFlowLogger or CSVLogger, or a Logger of your own",
    "LitLogger": "TensorBoardLogger, WandbLogger, MLFlowLogger or CSVLogger, or a Logger of your own",
    "AsyncCheckpointIO": "nothing: ModelCheckpoint writes in the background anyway",
    "TorchCheckpointIO": "nothing: files are read and written by everstep.checkpoint.ckpt",
    "XLACheckpointIO": "nothing: files are read and written by everstep.checkpoint.ckpt",
    "SLURMEnvironment": "nothing: the environment is recognised by its variables",
    "TorchElasticEnvironment": "nothing: the environment is recognised by its variables",
    "LightningEnvironment": "nothing: the environment is recognised by its variables",
    "KubeflowEnvironment": "nothing: the environment is recognised by its variables",
    "XLAProfiler": "PyTorchProfiler, or torch_xla's own",
    "SingleDeviceStrategy": 'strategy="auto", with devices=1',
    "MPSAccelerator": 'accelerator="cpu"; Everstep does not support Apple\'s GPUs',
    "XLAAccelerator": 'accelerator="tpu"',
    "find_usable_cuda_devices": "devices=2, or a list of their indices",
    "CheckpointIO": "nothing: files are read and written by everstep.checkpoint.ckpt, to any path or URL",
    "io": "nothing: files are read and written by everstep.checkpoint.ckpt, to any path or URL",
    "environments": "nothing: the environment is recognised by its variables",
    "BitsandbytesPrecision": "a Precision of your own (everstep.precision), which replaces the layers",
    "TransformerEnginePrecision": "a Precision of your own (everstep.precision), which replaces the layers",
    "DeepSpeedPrecision": 'precision="bf16-mixed" with strategy="deepspeed"',
    "FSDPPrecision": 'precision="bf16-mixed" with strategy="fsdp"',
    "XLAPrecision": 'precision="bf16-true"',
    "LayerSync": "sync_batchnorm=True",
    "TorchSyncBatchNorm": "sync_batchnorm=True",
    "disable_possible_user_warnings": "warnings.filterwarnings",
    "find_shared_parameters": "nothing: tied weights are saved once",
    "set_shared_parameters": "nothing: tied weights stay tied",
    "GradClipAlgorithmType": '"norm" or "value"',
    "is_picklable": "pickle.dumps in a try",
    "is_shared_filesystem": "checkpoint.uri, or save_dir on a disk that all nodes share",
    "LightningEnum": "enum.StrEnum",
    "measure_flops": "torch.utils.flop_counter.FlopCounterMode",
    "move_data_to_device": "self.trainer.strategy.to_device(batch)",
    "rank_zero_deprecation": "rank_zero_warn(message, DeprecationWarning)",
    "demos": "a module and a datamodule of your own",
    "LightningApp": "a TrainingRun (docs/architecture.md)",
    "LightningFlow": "a TrainingRun (docs/architecture.md)",
    "LightningWork": "a TrainingRun (docs/architecture.md)",
    "data": "a torch.utils.data.DataLoader",
    # Modules.
    "loops": "the Trainer's own attributes (current_epoch, global_step, num_training_batches …) and the hooks",
    "overrides": "nothing: the Trainer divides the data; use_distributed_sampler=False leaves it to the loaders",
    "trainer.call": "the Trainer's verbs; these are Lightning's insides",
    "trainer.configuration_validator": "nothing: the Trainer checks by itself; these are Lightning's insides",
    "trainer.connectors": "the Trainer's own attributes and arguments; these are Lightning's insides",
    "trainer.setup": "the Trainer's own attributes and arguments; these are Lightning's insides",
    "trainer.states": "trainer.state, and trainer.training, validating, testing, predicting and sanity_checking",
    "connector": "Fabric's own attributes and arguments; these are Lightning's insides",
    "utilities.argparse": "argparse, and Trainer(**vars(arguments))",
    "utilities.cloud_io": "fsspec; checkpoints are read from any path or URL",
    "utilities.compile": "torch.compile(module), before or after it is given to the Trainer",
    "utilities.consolidate_checkpoint": "`everstep checkpoint convert`",
    "utilities.deepspeed": "`everstep checkpoint convert`: any number of ranks can load the checkpoints",
    "utilities.device_dtype_mixin": "torch.nn.Module's own device and dtype of a parameter",
    "utilities.device_parser": "the argument devices=…",
    "utilities.enums": "the strings",
    "utilities.imports": "importlib.util.find_spec",
    "utilities.init": "configure_model, which is called where the parameters shall be made",
    "utilities.load": "torch.load(path, weights_only=True)",
    "utilities.logger": "self.save_hyperparameters, and logger.log_hyperparams",
    "utilities.memory": "torch.cuda.empty_cache and gc.collect",
    "utilities.migration": "`everstep checkpoint convert`",
    "utilities.model_summary.model_summary_deepspeed": "ModelSummary",
    "utilities.model_registry": "checkpoint.uri, or ModelCheckpoint(dirpath=…)",
    "utilities.optimizer": "nothing: optimizers' states are moved by themselves",
    "utilities.parameter_tying": "nothing: tied weights stay tied, and are saved once",
    "utilities.registry": "an object instead of a registered name",
    "utilities.signature_utils": "inspect.signature",
    "utilities.spike": "the callback SpikeDetection",
    "utilities.testing": "pytest.mark.skipif",
    "utilities.throughput": "the callback ThroughputMonitor",
    "utilities.upgrade_checkpoint": "`everstep checkpoint convert`",
    "utilities.warnings": "warnings.filterwarnings",
    "lite": "everstep.Fabric",
    "metrics.functional": "torchmetrics.functional",
    # Names of earlier Lightnings.
    "AMPType": "the strings that precision=… takes",
    "ApexMixedPrecisionPlugin": 'precision="16-mixed"',
    "BaguaStrategy": 'strategy="ddp"',
    "DDPFullyShardedNativeStrategy": 'strategy="fsdp"',
    "DDPFullyShardedStrategy": 'strategy="fsdp"',
    "DDPShardedPlugin": 'strategy="fsdp"',
    "DDPShardedStrategy": 'strategy="fsdp"',
    "DDPSpawnStrategy": 'strategy="ddp_spawn"',
    "EvalResult": "self.log",
    "GPUAccelerator": 'accelerator="gpu"',
    "GPUStatsMonitor": "the callback DeviceStatsMonitor",
    "HPUAccelerator": "cuda, cpu or tpu: HPUs are not supported",
    "HPUStrategy": "cuda, cpu or tpu: HPUs are not supported",
    "IPUAccelerator": "cuda, cpu or tpu: there is no support for IPUs any more",
    "IPUStrategy": "cuda, cpu or tpu: there is no support for IPUs any more",
    "PrecisionPlugin": "Precision of plugins",
    "TestTubeLogger": "TensorBoardLogger, WandbLogger, MLFlowLogger or CSVLogger, or a Logger of your own",
    "TrainResult": "self.log",
    "XLAStatsMonitor": "the callback DeviceStatsMonitor",
    "core.decorators": "self.trainer.strategy.to_device(batch), or methods without a decorator",
    "auto_move_data": "self.trainer.strategy.to_device(batch)",
    "data_loader": "nothing: train_dataloader and the others are methods without a decorator",
    "save_hparams_to_yaml": "logger.log_hyperparams, which writes hparams.yaml",
    "str_to_bool": "a comparison with the strings that are allowed",
    "training_type": "DDPStrategy and the others of strategies",
    "DDPPlugin": "DDPStrategy of strategies",
    "DDP2Plugin": "DDPStrategy of strategies",
    "EPOCH_OUTPUT": "typing.Any",
    "LightningLoggerBase": "Logger of loggers",
    "LightningLite": "everstep.Fabric",
    "MixedPrecisionPlugin": "MixedPrecision of plugins",
    "NativeMixedPrecisionPlugin": "MixedPrecision of plugins",
    "ProgressBarBase": "ProgressBar of callbacks",
    "apply_to_collection": "torch.utils._pytree.tree_map",
    "save_hyperparameters": "self.save_hyperparameters()",
    # Names in modules that are there.
    "is_wrapped": "isinstance(model, everstep.fabric.FabricModule)",
    "launchers": "`everstep launch`, or devices=2, with which the Trainer starts its ranks itself",
    "AttributeDict": "everstep.utilities.AttributeDict",
    "ACCELERATOR_REGISTRY": "an Accelerator, given to the Trainer",
    "BatchesProcessedColumn": "rich.progress.MofNCompleteColumn",
    "CheckpointHooks": "LightningModule, which has them",
    "ClusterEnvironment": "nothing: the environment is recognised by its variables",
    "CollectibleGroup": "typing.Any",
    "Collective": "Fabric's or the module's all_gather and the strategy's reduce",
    "SingleDeviceCollective": "Fabric's or the module's all_gather and the strategy's reduce",
    "TorchCollective": "torch.distributed",
    "CustomProgress": "rich.progress.Progress",
    "DataHooks": "LightningModule or LightningDataModule, which have them",
    "DeepSpeedSummary": "ModelSummary",
    "DistributedDataParallel": "torch.nn.parallel.DistributedDataParallel",
    "ExperimentWriter": "CSVLogger itself",
    "HyperparametersMixin": "LightningModule or LightningDataModule, which have save_hyperparameters",
    "Interval": '"step" or "epoch"',
    "LRSchedulerConfig": "a dict",
    "LRSchedulerConfigType": "a dict",
    "LightningDeprecationWarning": "DeprecationWarning",
    "ModelHooks": "LightningModule, which has them",
    "Optimizable": "torch.optim.Optimizer",
    "OptimizerConfig": "a dict",
    "OptimizerLRSchedulerConfig": "a dict",
    "SIGTERMException": "nothing: a stop saves and leaves by itself",
    "DataParallelStrategy": 'strategy="ddp"',
    "DistributedSamplerWrapper": "nothing: the data is divided; a sampler of your own is read by all ranks in turn",
    "LSFEnvironment": "nothing: the environment is recognised by its variables",
    "MPIEnvironment": "nothing: the environment is recognised by its variables",
    "SingleDeviceXLAStrategy": 'accelerator="tpu"',
    "ThroughputMonitor": "the callback ThroughputMonitor",
    "XLAEnvironment": "nothing: the environment is recognised by its variables",
    "XLAFSDPStrategy": 'accelerator="tpu" with strategy="fsdp"',
    "XLAStrategy": 'accelerator="tpu"',
    "find_free_network_port": "nothing: the launcher chooses ports",
    "STRATEGY_REGISTRY": "a Strategy, given to the Trainer",
    "Steppable": "torch.optim.Optimizer",
    "Throughput": "the callback ThroughputMonitor",
    "WriteInterval": '"batch", "epoch" or "batch_and_epoch"',
    "extract_batch_size": "self.log(…, batch_size=…)",
    "get_torchvision_model": "torchvision.models.get_model",
    "lightning_getattr": "getattr on self.hparams",
    "lightning_hasattr": "hasattr on self.hparams",
    "lightning_setattr": "setattr on self.hparams",
    "merge_dicts": "{**first, **second}",
    "pl_worker_init_function": "nothing: workers are seeded by themselves",
    "reset_seed": "seed_everything",
    "serve": "LightningModule.to_onnx or to_torchscript, and a server of your choice",
}


def install() -> None:
    """From now on, in this process. What was imported from the real Lightning before stays what it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class MissingInEverstep(ConfigurationError, ModuleNotFoundError):
    """A name of Lightning that Everstep does not have. No AttributeError: `from … import` would swallow its message."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        home = _home(fullname)
        if home is None:
            return None
        return ModuleSpec(fullname, _Loader(home), is_package=True)


def _below(fullname: str) -> str | None:
    """The path below Lightning's package; None: it is none of Lightning's."""
    root = next((root for root in _ROOTS if fullname == root or fullname.startswith(f"{root}.")), None)
    return None if root is None else fullname.removeprefix(root).lstrip(".")


def _home(fullname: str) -> str | None:
    """The module of ours that a module of Lightning's stands for; None: it is none of Lightning's.

    Raises:
        MissingInEverstep: there is none.
    """
    rest = _below(fullname)
    if rest is None:
        return None
    if not rest:
        return "everstep"
    home = _module(rest)
    package = rest.partition(".")[0]
    if home is None and package in _PACKAGES:
        home = f"everstep.{package}"
    if home is None:
        raise MissingInEverstep(_missing(fullname, rest), name=fullname)
    return home


def _module(rest: str) -> str | None:
    """The module of ours for this path below a root, if there is one of that name."""
    home = _MOVED.get(rest) or f"everstep.{rest}"
    try:
        found = rest not in _NOT_OURS and find_spec(home) is not None
    except ModuleNotFoundError:  # not even its parent
        found = False
    return home if found else None


class _Loader(Loader):
    def __init__(self, home: str) -> None:
        self.home = home

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name, self.home)

    def exec_module(self, module: ModuleType) -> None:
        """The module it stands for is imported when something is asked of it."""


class _Alias(ModuleType):
    """A module of Lightning's name with the content of one of ours."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name, f"{home}, as {name}")
        self.__dict__["_home"] = home
        self.__dict__["__path__"] = []
        if home == "everstep":
            self.__dict__["__version__"] = LIGHTNING_VERSION

    @property
    def __all__(self) -> list[str]:
        home = import_module(self._home)
        return list(getattr(home, "__all__", [name for name in vars(home) if not name.startswith("_")]))

    def __getattr__(self, name: str) -> Any:
        home = import_module(self.__dict__["_home"])
        if hasattr(home, name):
            return getattr(home, name)
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        fullname = f"{self.__name__}.{name}"
        rest = _below(fullname) or ""  # "": lightning.pytorch, lightning.fabric
        if rest and _module(rest) is None:
            raise MissingInEverstep(_missing(fullname, rest), name=fullname)
        return import_module(fullname)

    def __dir__(self) -> list[str]:
        return dir(import_module(self._home))


def _missing(fullname: str, rest: str) -> str:
    instead = instead_of(rest)
    what = (
        f"use instead: {instead}" if instead else "take it out of the script, or open an issue that says what it is for"
    )
    return f"everstep stands in for Lightning here (--lightning-alias) and has no {fullname}; {what}"


def instead_of(rest: str) -> str | None:
    """What to do without this name or module, by its own name or by the path of a package that it is in."""
    parts = rest.split(".")
    paths = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((INSTEAD[key] for key in (parts[-1], *paths) if key in INSTEAD), None)
