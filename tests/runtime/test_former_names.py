"""Scripts of earlier Lightnings are told what to write today."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.checkpoint import ckpt
from everstep.cli import main
from everstep.errors import ConfigurationError, StorageError
from everstep.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from everstep.strategies.missing import INSTEAD as OF_STRATEGIES
from everstep.trainer.missing import INSTEAD
from everstep.unknown_arguments import FORMER, UnknownArgumentError
from everstep_protocol.reasons import Reason
from tests.runtime.build import Net, loader, trainer

STRATEGIES: tuple[Any, ...] = (DDPStrategy, FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
FUNCTIONS: dict[str, Any] = {
    "Trainer": L.Trainer.__init__,
    "ModelCheckpoint": ModelCheckpoint.__init__,
    **{verb: getattr(L.Trainer, verb) for verb in ("fit", "validate", "test", "predict")},
    **{kind.__name__: kind.__init__ for kind in STRATEGIES},
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpus", "what takes its place: devices and accelerator"),
        ("resume_from_checkpoint", "trainer.fit(model, ckpt_path=…)"),
        ("checkpoint_callback", "enable_checkpointing=True or False"),
        ("replace_sampler_ddp", "use_distributed_sampler"),
        ("track_grad_norm", "GradientNormMonitor"),
        ("terminate_on_nan", "detect_anomaly"),
        ("multiple_trainloader_mode", "CombinedLoader"),
    ],
)
def test_s03_a_former_argument_of_the_trainer_is_told_what_took_its_place(name: str, message: str) -> None:
    with pytest.raises(UnknownArgumentError) as refused:
        L.Trainer(**{name: 1})  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert isinstance(refused.value, TypeError)
    assert refused.value.reason is Reason.CONFIGURATION, "no restart can help"


def test_s03_former_arguments_of_verbs_and_callbacks(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1)
    with pytest.raises(TypeError, match=r"fit has no argument 'train_dataloader'; .*train_dataloaders,"):
        runner.fit(Net(), train_dataloader=loader())
    with pytest.raises(TypeError, match=r"test has no argument 'test_dataloaders'; .*dataloaders="):
        runner.test(Net(), test_dataloaders=loader())
    with pytest.raises(TypeError, match="argument 'return_prediction': did you mean 'return_predictions'"):
        runner.predict(Net(), loader(), return_prediction=False)
    with pytest.raises(TypeError, match=r"ModelCheckpoint has no argument 'period'; .*every_n_epochs"):
        ModelCheckpoint(period=2)
    with pytest.raises(TypeError, match="ModelCheckpoint has no argument 'save_top': did you mean 'save_top_k'"):
        ModelCheckpoint(save_top=2)


@pytest.mark.parametrize(
    ("strategy", "name", "message"),
    [
        (DDPStrategy, "ddp_comm_hook", "gradients are averaged as they are"),
        (DDPStrategy, "cluster_environment", "Kubernetes and SLURM"),
        (FSDPStrategy, "state_dict_type", "one file of whole tensors"),
        (FSDPStrategy, "limit_all_gathers", "FSDP2 does so by itself"),
        (ModelParallelStrategy, "save_distributed_checkpoint", "one file of whole tensors"),
        (DeepSpeedStrategy, "zero_optimization", "stage=1, 2 or 3"),
        (DDPStrategy, "find_unused_parameter", "did you mean 'find_unused_parameters'"),
        (ModelParallelStrategy, "cpu_ofload", "did you mean 'cpu_offload'"),
        (DeepSpeedStrategy, "time_out", "did you mean 'timeout'"),
    ],
)
def test_s03_arguments_of_lightnings_strategies_are_told_what_takes_their_place(
    strategy: Any, name: str, message: str
) -> None:
    with pytest.raises(UnknownArgumentError) as refused:
        strategy(**{name: 1})
    assert message in str(refused.value)
    assert f"{strategy.__name__} has no argument {name!r}" in str(refused.value)


@pytest.mark.parametrize("owner", FORMER)
def test_s03_nothing_that_is_an_argument_is_called_a_former_one(owner: str) -> None:
    assert not FORMER[owner].keys() & inspect.signature(FUNCTIONS[owner]).parameters.keys()


@pytest.mark.parametrize("name", INSTEAD)
def test_s03_an_attribute_that_is_not_there_says_what_to_use(tmp_path: Path, name: str) -> None:
    runner = trainer(tmp_path)
    assert not hasattr(runner, name)
    with pytest.raises(AttributeError, match=f"Trainer has no {name}; use instead: "):
        getattr(runner, name)
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        _ = runner.no_such_thing


@pytest.mark.parametrize("name", OF_STRATEGIES)
def test_s06_a_strategys_attribute_that_is_not_there_says_what_to_use(name: str) -> None:
    strategy = DDPStrategy()
    assert not hasattr(strategy, name)
    with pytest.raises(AttributeError, match=f"strategies have no {name}; use instead: "):
        getattr(strategy, name)
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        _ = strategy.no_such_thing


class OldStep(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, on_tpu):  # type: ignore
        raise AssertionError("it was called")


class OldClipping(Net):
    def configure_gradient_clipping(self, optimizer, optimizer_idx, value, algorithm):  # type: ignore
        raise AssertionError("it was called")


class OldSetup(Net):
    def setup(self):  # type: ignore
        raise AssertionError("it was called")


class OldCallback(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx):  # type: ignore
        raise AssertionError("it was called")


class Bare(Net):
    def optimizer_step(self, *arguments: Any, **more: Any) -> None:
        super().optimizer_step(*arguments, **more)

    def setup(self, *arguments: Any) -> None: ...

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (
            OldStep,
            [],
            r"OldStep.optimizer_step\(epoch, batch_idx, optimizer, optimizer_idx, .* it is given \(epoch, bat",
        ),
        (OldClipping, [], "OldClipping.configure_gradient_clipping"),
        (OldSetup, [], r"OldSetup.setup\(\) cannot be called: it is given \(stage\)"),
        (Net, [OldCallback()], "OldCallback.on_train_batch_end"),
    ],
)
def test_s04_arguments_of_earlier_hooks_are_refused_before_anything_runs(
    tmp_path: Path, module: type[Net], callbacks: list[L.Callback], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, callbacks=callbacks).fit(module(), loader())


def test_s04_other_ways_to_take_the_arguments_are_fine(tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(Bare(), loader())
    assert runner.global_step == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logger": "tensorboard"}, r"logger='tensorboard': give True, False or a Logger .*TensorBoardLogger\(\)"),
        ({"logger": 3}, "logger=3: give True"),
        ({"precision": "fp16"}, 'is not known: give "16-mixed" or "16-true"'),
        ({"precision": "transformer-engine"}, "a Precision of your own"),
        ({"default_root_dir": 3}, "default_root_dir=3: it has to be a path"),
        ({"accumulate_grad_batches": {0: 2}}, "GradientAccumulationScheduler"),
    ],
)
def test_s03_values_that_say_the_way_out(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, **arguments)


def test_the_class_instead_of_a_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the model is the class Net: give an instance, Net\("):
        trainer(tmp_path).fit(Net, loader())


def test_s50_files_that_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, empty, text = (tmp_path / name for name in ("weights.ckpt", "empty.ckpt", "text.ckpt"))
    torch.save({"state_dict": Net().state_dict()}, weights)
    empty.touch()
    text.write_text("epoch,step\n1,2\n")
    with pytest.raises(ConfigurationError, match="not where a training stood"):
        trainer(tmp_path).fit(Net(), loader(), ckpt_path=str(weights))
    assert Net.load_from_checkpoint(weights).layer.weight.shape == (1, 3), "weights alone are enough for that"
    with pytest.raises(StorageError, match="no checkpoint file: it is cut short, or was never one"):
        ckpt.read(empty)
    with pytest.raises((StorageError, ConfigurationError), match=r"text\.ckpt"):
        ckpt.read(text)
    target = tmp_path / "new.ckpt"
    for words in (["inspect", str(empty)], ["convert", "--trust", str(weights), str(target)]):
        assert main(["checkpoint", *words]) != 0
        assert "Traceback" not in capsys.readouterr().err
    assert not target.exists(), "nothing is written that cannot be used"
