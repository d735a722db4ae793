"""What Trainer arguments may be. Everything that cannot work is refused here, before anything starts."""

import math
import os
from typing import Any

from everstep.errors import ConfigurationError
from everstep.trainer.clock import Duration, seconds

#: Arguments that are whole numbers, and the least that they may be.
_WHOLE = {
    "max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0, "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1, "log_every_n_steps": 0, "accumulate_grad_batches": 1,
    "reload_dataloaders_every_n_epochs": 0, "fast_dev_run": 0,
}  # fmt: skip
_MAY_BE_NONE = ("max_epochs", "min_epochs", "min_steps", "check_val_every_n_epoch", "num_sanity_val_steps",
                "log_every_n_steps")  # fmt: skip
#: Arguments that are a number of batches, or a part of them.
_BATCHES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
            "val_check_interval", "overfit_batches")  # fmt: skip
#: Arguments that are True or False, and what else they may be.
_FLAGS: dict[str, tuple[Any, ...]] = {
    "deterministic": (None, "warn"), "benchmark": (None,), "sync_batchnorm": (), "inference_mode": (),
    "use_distributed_sampler": (), "detect_anomaly": (), "barebones": (),
}  # fmt: skip
#: Arguments that `barebones` turns off, so that giving them as well contradicts it.
_SLOW = ("logger", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "num_sanity_val_steps",
         "fast_dev_run", "detect_anomaly", "profiler")  # fmt: skip


def check(given: dict[str, Any]) -> None:
    """
    Raises:
        ConfigurationError: a value cannot work, or two do not go together; says what would.
    """
    _check_numbers(given)
    _check_choices(given)
    folder = given["default_root_dir"]
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise ConfigurationError(f"default_root_dir={folder!r}: it has to be a path")
    _check_combinations(given)


def _check_numbers(given: dict[str, Any]) -> None:
    if isinstance(given["accumulate_grad_batches"], dict):
        raise ConfigurationError(
            f"accumulate_grad_batches={given['accumulate_grad_batches']}: it is one number; for one that changes by "
            "epochs add the callback GradientAccumulationScheduler(scheduling={epoch: batches})"
        )
    for name, least in _WHOLE.items():
        value = given[name]
        if value is None and name in _MAY_BE_NONE:
            continue
        boolean = isinstance(value, bool) and name != "fast_dev_run"
        if not isinstance(value, int) or boolean or value < least:
            raise ConfigurationError(f"{name}={value!r}: it has to be a whole number, at least {least}")
    for name in _BATCHES:
        value = given[name]
        if value is None or (name == "val_check_interval" and _is_time(value)):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not math.isfinite(value):
            raise ConfigurationError(
                f"{name}={value!r}: it has to be a number of batches (an int) or a part (0.0 to 1.0)"
            )
        if isinstance(value, float) and value > 1.0:
            raise ConfigurationError(
                f"{name}={value}: a float is a part, at most 1.0; for batches give an int: {int(value)}"
            )
    if given["val_check_interval"] == 0:
        raise ConfigurationError("val_check_interval is 0: give 1.0 for the end of the epoch, or an int of at least 1")
    clip = given["gradient_clip_val"]
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or clip < 0):
        raise ConfigurationError(f"gradient_clip_val={clip!r}: it has to be a number of at least 0")


def _check_choices(given: dict[str, Any]) -> None:
    for name, others in _FLAGS.items():
        if given[name] not in (True, False, *others):
            rest = "".join(f" or {other!r}" for other in others)
            raise ConfigurationError(f"{name}={given[name]!r}: give True or False{rest}")
    algorithm = given["gradient_clip_algorithm"]
    if algorithm not in (None, "norm", "value"):
        raise ConfigurationError(f'gradient_clip_algorithm={algorithm!r}: give "norm" or "value"')


def _check_combinations(given: dict[str, Any]) -> None:
    every = given["val_check_interval"]
    if given["check_val_every_n_epoch"] is None and (every is None or isinstance(every, float)):
        raise ConfigurationError(
            f"check_val_every_n_epoch=None counts batches across epochs, but val_check_interval={every} is a part of "
            "one: give a number of batches (an int) or a time"
        )
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        if None not in (given[least], given[most]) and 0 <= given[most] < given[least]:
            raise ConfigurationError(f"{least}={given[least]} is more than {most}={given[most]}: no fit can have both")
    if given["enable_logging"] is not None:
        if not isinstance(given["enable_logging"], bool):
            raise ConfigurationError(f"enable_logging={given['enable_logging']!r}: give True or False")
        if not given["enable_logging"] and given["logger"] not in (None, False):
            raise ConfigurationError("enable_logging=False, but a logger is given: take one of them away")
        if given["enable_logging"] and given["logger"] is False:
            raise ConfigurationError("enable_logging=True, but logger=False: take one of them away")
    if given["model_registry"] is not None:
        raise ConfigurationError(
            "model_registry is Lightning's own service: take it away, and keep models with checkpoint.uri or "
            "ModelCheckpoint(dirpath=…)"
        )
    if given["barebones"]:
        for name in _SLOW:
            if given[name]:
                raise ConfigurationError(
                    f"barebones=True is for measuring the bare loop, {name}={given[name]!r} would be measured with it: "
                    "take one of them away"
                )


def _is_time(value: Any) -> bool:
    return isinstance(value, str | dict) or hasattr(value, "total_seconds")


def interval(value: int | float | Duration | None) -> tuple[int | float, float | None]:
    """val_check_interval as (batches or a part, seconds)."""
    if _is_time(value):
        return 1.0, seconds(value, "val_check_interval")  # type: ignore[arg-type]
    return 1.0 if value is None else value, None  # type: ignore[return-value]
