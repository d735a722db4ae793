"""Scripts of earlier Lightnings are told what to write today."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import everstep as L
from everstep.callbacks import ModelCheckpoint
from everstep.unknown_arguments import FORMER, UnknownArgumentError
from everstep_protocol.reasons import Reason
from tests.runtime.build import Net, loader, trainer

FUNCTIONS: dict[str, Any] = {
    "Trainer": L.Trainer.__init__,
    "ModelCheckpoint": ModelCheckpoint.__init__,
    **{verb: getattr(L.Trainer, verb) for verb in ("fit", "validate", "test", "predict")},
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpus", "what took its place: devices and accelerator"),
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
    with pytest.raises(TypeError, match=r"fit has no argument 'train_dataloader' any more; .*train_dataloaders,"):
        runner.fit(Net(), train_dataloader=loader())
    with pytest.raises(TypeError, match=r"test has no argument 'test_dataloaders' any more; .*dataloaders="):
        runner.test(Net(), test_dataloaders=loader())
    with pytest.raises(TypeError, match="argument 'return_prediction': did you mean 'return_predictions'"):
        runner.predict(Net(), loader(), return_prediction=False)
    with pytest.raises(TypeError, match=r"ModelCheckpoint has no argument 'period' any more; .*every_n_epochs"):
        ModelCheckpoint(period=2)
    with pytest.raises(TypeError, match="ModelCheckpoint has no argument 'save_top': did you mean 'save_top_k'"):
        ModelCheckpoint(save_top=2)


@pytest.mark.parametrize("owner", FORMER)
def test_s03_nothing_that_is_an_argument_is_called_a_former_one(owner: str) -> None:
    assert not FORMER[owner].keys() & inspect.signature(FUNCTIONS[owner]).parameters.keys()
