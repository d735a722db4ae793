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

#: To be put in front of PYTHONPATH for a process that shall have the alias from its start.
FOLDER = Path(__file__).parent

#: The Lightning whose names these are: what `pl.__version__` says, as scripts choose their imports by it.
LIGHTNING_VERSION = "2.6.0"

_ROOTS = ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning", "lightning_fabric")

#: Modules of Lightning whose content is elsewhere here. All others have the same path below `everstep`.
_MOVED = {
    "core": "everstep",
    "core.datamodule": "everstep.data",
    "core.module": "everstep.module",
    "core.saving": "everstep.module",
    "callbacks.callback": "everstep.callbacks.base",
    "callbacks.checkpoint": "everstep.callbacks.model_checkpoint",
    "loggers.csv_logs": "everstep.loggers.csv",
    "loggers.logger": "everstep.loggers.base",
    "callbacks.progress.tqdm_progress": "everstep.callbacks",
    "callbacks.progress.rich_progress": "everstep.callbacks",
    "trainer.trainer": "everstep.trainer",
    "utilities.model_summary.model_summary": "everstep.utilities.model_summary",
    "plugins.precision": "everstep.plugins",
    "fabric": "everstep",
}

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
    "DeepSpeedPrecision": 'precision="bf16-mixed" with strategy="fsdp"',
    "FSDPPrecision": 'precision="bf16-mixed" with strategy="fsdp"',
    "XLAPrecision": 'precision="bf16-true"',
    "LayerSync": "sync_batchnorm=True",
    "TorchSyncBatchNorm": "sync_batchnorm=True",
    "AttributeDict": "self.hparams, which is one, or types.SimpleNamespace",
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
    "serve": "LightningModule.to_onnx or to_torchscript, and a server of your choice",
}


def install() -> None:
    """From now on, in this process. What was imported from the real Lightning before stays what it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class MissingInEverstep(ModuleNotFoundError):
    """A name of Lightning that Everstep does not have. No AttributeError: `from … import` would swallow its message."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        home = _home(fullname)
        if home is None:
            return None
        return ModuleSpec(fullname, _Loader(home), is_package=True)


def _home(fullname: str) -> str | None:
    """The module of ours that a module of Lightning's stands for; None: it is none of Lightning's.

    Raises:
        MissingInEverstep: there is none.
    """
    root = next((root for root in _ROOTS if fullname == root or fullname.startswith(f"{root}.")), None)
    if root is None:
        return None
    rest = fullname.removeprefix(root).lstrip(".")
    if not rest:
        return "everstep"
    home = _MOVED.get(rest) or f"everstep.{rest}"
    try:
        found = find_spec(home) is not None
    except ModuleNotFoundError:  # not even its parent
        found = False
    if not found:
        raise MissingInEverstep(_missing(fullname, rest.rpartition(".")[2]), name=fullname)
    return home


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
        return import_module(f"{self.__name__}.{name}")  # a sub-module, or it says what to use instead

    def __dir__(self) -> list[str]:
        return dir(import_module(self._home))


def _missing(fullname: str, name: str) -> str:
    instead = INSTEAD.get(name) or INSTEAD.get(fullname.removeprefix("lightning.").split(".")[-1])
    what = (
        f"use instead: {instead}" if instead else "take it out of the script, or open an issue that says what it is for"
    )
    return f"everstep stands in for Lightning here (--lightning-alias) and has no {fullname}; {what}"
