"""What `ckpt_path` may be, and what it stands for."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.callbacks.model_checkpoint import ModelCheckpoint
from everstep.checkpoint import ckpt
from everstep.checkpoint.format import Damaged
from everstep.checkpoint.restore import read_marker, read_state
from everstep.checkpoint.storage import open_storage
from everstep.errors import ConfigurationError, StorageError
from everstep_protocol.checkpoints import MARKERS, CheckpointId, newest_first
from everstep_protocol.messages import CheckpointInfo

if TYPE_CHECKING:
    from everstep.trainer.trainer import Trainer

CkptPath = str | int | os.PathLike[str]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint of the user's choice, as the fit takes those of its run."""

    name: str
    step: int
    shared: Any
    rank: Any
    info: CheckpointInfo
    call: int = 0


def load(trainer: "Trainer", ckpt_path: CkptPath) -> Loaded | None:
    """Read it. Collective. None: a fit was given "last" or "latest", as a script that will be started again gives it,
    and there is nothing yet.

    Args:
        ckpt_path: a path or URL, of a file or of a run's checkpoint prefix; "best" and "last" of ModelCheckpoint;
            "latest": the newest there is; a number: that of this step.

    Raises:
        ConfigurationError: there is no such checkpoint; names those there are.
    """
    place = trainer.strategy.broadcast(_place(trainer, ckpt_path) if trainer.is_global_zero else "")
    if not place:
        return None
    trainer.ckpt_path = place
    prefix, _, name = place.partition("#")
    return _of_run(trainer, prefix, name) if name else _of_file(trainer, place)


def _of_file(trainer: "Trainer", place: str) -> Loaded:
    checkpoint = ckpt.read(place, "cpu")
    ckpt.check_position(place, checkpoint)
    ranks = checkpoint.get("everstep", {}).pop("ranks", [])
    rank = ranks[trainer.global_rank] if len(ranks) == trainer.world_size else None
    step = checkpoint["global_step"]
    if "everstep" not in checkpoint and trainer.fitting:
        trainer.print(
            f"everstep: {place} is Lightning {checkpoint.get('pytorch-lightning_version', '')}'s: weights, optimizers, "
            "schedulers, callbacks and the place in the data come from it; it holds no random states and no half-done "
            "means, and the order of the data is Everstep's"
        )
    info = CheckpointInfo(step, place, len(ranks) or trainer.world_size, 1, 0.0)
    return Loaded(Path(place).name, step, {"checkpoint": checkpoint}, rank, info)


def _of_run(trainer: "Trainer", prefix: str, name: str) -> Loaded:
    checkpoint, storage = CheckpointId.parse(name), open_storage(prefix)
    assert checkpoint is not None
    try:
        marker = read_marker(storage, checkpoint)
        shared, rank = read_state(storage, checkpoint, marker, trainer.global_rank, trainer.world_size)
    except Damaged as damage:
        raise StorageError(f"checkpoint {name} in {prefix} cannot be restored: {damage}") from None
    if "checkpoint" not in shared:
        raise ConfigurationError(
            f"checkpoint {name} in {prefix} is the end of a call that was no fit: it has no weights"
        )
    info = CheckpointInfo(checkpoint.step, prefix, marker.world_size, marker.generation, marker.time)
    return Loaded(name, checkpoint.step, {"checkpoint": shared["checkpoint"]}, rank, info)


# Which one: on rank 0. A checkpoint of a run is <prefix>#<name>.


def _place(trainer: "Trainer", ckpt_path: CkptPath) -> str:
    callbacks = trainer.checkpoint_callbacks
    keeping = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if isinstance(ckpt_path, int):
        return _of_step(keeping, trainer, ckpt_path)
    if ckpt_path == "best":
        best = next((callback.best_model_path for callback in keeping if callback.best_model_path), "")
        if not best:
            raise ConfigurationError(
                'ckpt_path="best", but no ModelCheckpoint of this Trainer has saved any: fit first, with '
                "ModelCheckpoint(monitor=…) among the callbacks, or give a path"
            )
        return best
    if ckpt_path == "last":
        return _last(keeping, trainer)
    if ckpt_path == "latest":
        return _latest(keeping, trainer)
    if ckpt_path == "":
        raise ConfigurationError(
            "ckpt_path is empty, as best_model_path is while nothing was saved: give a path or URL, or None for none"
        )
    if ckpt_path in ("hpc", "registry"):
        raise ConfigurationError(
            f'ckpt_path={ckpt_path!r} is Lightning\'s own: give a path or URL, "best", "last", "latest" or a step'
        )
    place = ckpt.as_place(ckpt_path)
    if place.endswith(".ckpt") or not (ckpt.is_url(place) or os.path.isdir(place)):
        return place
    return newest_of_prefix(place)


def newest_of_prefix(place: str, step: int | None = None) -> str:
    """
    Raises:
        ConfigurationError: there is no checkpoint below it, or none of this step; names those there are.
    """
    uri = ckpt.as_uri(place)
    found = newest_first(entry.key for entry in open_storage(uri).list(MARKERS))
    wanted = [i for i in found if step is None or i.step == step]
    if not wanted:
        there = f"; there are those of step {', '.join(str(i.step) for i in found[:12])}" if found else ""
        what = "no checkpoints of a run" if step is None else f"no checkpoint of step {step}"
        raise ConfigurationError(f"{place} holds {what}{there}. Give a .ckpt file, or a run's checkpoint uri")
    return f"{uri}#{wanted[0].name}"


def _last(keeping: list[ModelCheckpoint], trainer: "Trainer") -> str:
    named = [callback.last_model_path for callback in keeping if callback.last_model_path]
    there = [p for p in named if ckpt.exists(p)] or [
        path
        for path in _files(keeping)
        if re.match(rf"{re.escape(ModelCheckpoint.CHECKPOINT_NAME_LAST)}(-v?\d+)?\.ckpt$", path.rpartition("/")[2])
    ]
    if not there:
        message = (
            f'ckpt_path="last", but there is no last.ckpt in {_folders(keeping)}: use ModelCheckpoint(save_last=True) '
            '(with the same dirpath), or give "latest" for the newest of any name'
        )
        if _files(keeping):
            raise ConfigurationError(message)  # what there is was not meant to be trained anew
        return _nothing_yet(trainer, message)
    return max(there, key=_step)


def _latest(keeping: list[ModelCheckpoint], trainer: "Trainer") -> str:
    files = _files(keeping)
    newest = max(files, key=_step) if files else ""
    uri = trainer.run.environment.checkpoint_uri
    if uri is not None:
        found = newest_first(entry.key for entry in open_storage(uri).list(MARKERS))
        if found and (not newest or found[0].step > _step(newest)):
            return f"{uri}#{found[0].name}"
    if not newest:
        return _nothing_yet(
            trainer, f'ckpt_path="latest", but there is no .ckpt file in {_folders(keeping)}: give a path'
        )
    return newest


def _nothing_yet(trainer: "Trainer", message: str) -> str:
    """
    Raises:
        ConfigurationError: the call cannot begin without.
    """
    if not trainer.fitting:
        raise ConfigurationError(message)
    warnings.warn(f"{message}. The fit begins anew", stacklevel=2)
    return ""


def _of_step(keeping: list[ModelCheckpoint], trainer: "Trainer", step: int) -> str:
    steps = {_step(path): path for path in _files(keeping)}
    if step in steps:
        return steps[step]
    uri = trainer.run.environment.checkpoint_uri
    if uri is not None:
        return newest_of_prefix(uri, step)
    there = f"there are those of step {', '.join(map(str, sorted(steps)))}" if steps else "there are no checkpoints"
    raise ConfigurationError(f"ckpt_path={step}: no .ckpt file of that step in {_folders(keeping)}; {there}")


def _files(keeping: list[ModelCheckpoint]) -> list[str]:
    return [path for folder in dict.fromkeys(c.dirpath for c in keeping) if folder for path in ckpt.listed(folder)]


def _folders(keeping: list[ModelCheckpoint]) -> str:
    folders = ", ".join(dict.fromkeys(callback.dirpath or "" for callback in keeping))
    return folders or "any folder (the Trainer has no ModelCheckpoint)"


def _step(path: str) -> int:
    """Of the name, if it says so, else of the file itself. -1: it cannot be read."""
    named = re.search(r"step=(\d+)", path.rpartition("/")[2])
    if named:
        return int(named[1])
    try:
        return int(ckpt.read(path, mmap=True)["global_step"])
    except (ConfigurationError, StorageError, KeyError):
        return -1
