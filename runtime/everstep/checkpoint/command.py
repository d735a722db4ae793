"""`everstep checkpoint`: look at checkpoints, verify them, convert them, export their weights."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep.checkpoint.storage import Storage
    from everstep_protocol.checkpoints import CheckpointId, Marker

HELP = "look at checkpoints, verify them, convert them, export their weights"

_PLACE = "a .ckpt file, or the checkpoint uri of a run: a path or URL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    inspect = verbs.add_parser("inspect", help="what is in it")
    inspect.add_argument("place", help=_PLACE)
    inspect.add_argument("--tensors", action="store_true", help="every tensor of the model")
    verify = verbs.add_parser("verify", help="read all of it; exit status 1 if something is damaged")
    verify.add_argument("place", help=_PLACE)
    convert = verbs.add_parser("convert", help="a run's checkpoint into a .ckpt file, or the other way round")
    convert.add_argument("source", help=_PLACE)
    convert.add_argument("target", help="a .ckpt file; any other path or URL: an empty prefix, to be a run's uri")
    convert.add_argument(
        "--trust", action="store_true", help="unpickle the source, which runs code that is in it, and write plain data"
    )
    export = verbs.add_parser("export", help="the model's weights as a .safetensors file")
    export.add_argument("source", help=_PLACE)
    export.add_argument("target", help="a .safetensors file")
    for verb in (inspect, convert, export):
        verb.add_argument("--step", type=int, help="of a run's checkpoints: that of this step (default: the newest)")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 it is damaged, not there or cannot be used."""
    from everstep.errors import EverstepError

    verbs = {"inspect": _inspect, "verify": _verify, "convert": _convert, "export": _export}
    try:
        return verbs[args.verb](args)
    except EverstepError as error:
        print(f"everstep: {error}", file=sys.stderr)
        return 1


# A place is either a .ckpt file, or a run's prefix with checkpoints in it.


def _prefix(place: str) -> str | None:
    """The uri, if it is a run's."""
    import os

    from everstep.checkpoint import ckpt

    place = ckpt.as_place(place)
    if place.endswith(".ckpt") or not (ckpt.is_url(place) or os.path.isdir(place)):
        return None
    return ckpt.as_uri(place)


def _chosen(uri: str, step: int | None) -> "tuple[Storage, CheckpointId]":
    from everstep.checkpoint.storage import open_storage
    from everstep.trainer.ckpt_path import newest_of_prefix
    from everstep_protocol.checkpoints import CheckpointId

    checkpoint = CheckpointId.parse(newest_of_prefix(uri, step).rpartition("#")[2])
    assert checkpoint is not None
    return open_storage(uri), checkpoint


def _read(place: str, step: int | None, *, mmap: bool = False) -> dict[str, Any]:
    """As one dictionary, with the state of every rank under everstep/ranks."""
    from everstep.checkpoint import ckpt
    from everstep.checkpoint.format import Damaged
    from everstep.checkpoint.restore import read_marker, read_state
    from everstep.errors import ConfigurationError, StorageError

    uri = _prefix(place)
    if uri is None:
        if step is not None:
            raise ConfigurationError(f"--step chooses among a run's checkpoints; {place} is one file")
        return ckpt.read(place, "cpu", mmap=mmap)
    storage, checkpoint = _chosen(uri, step)
    try:
        marker = read_marker(storage, checkpoint)
        states = [read_state(storage, checkpoint, marker, r, marker.world_size) for r in range(marker.world_size)]
    except Damaged as damage:
        raise StorageError(f"checkpoint {checkpoint.name} in {uri} is damaged: {damage}") from None
    found: dict[str, Any] | None = states[0][0].get("checkpoint")
    if found is None:
        raise ConfigurationError(
            f"checkpoint {checkpoint.name} in {uri} is the end of a Trainer call that was no fit: it has no weights. "
            "Choose another with --step"
        )
    found["everstep"]["ranks"] = [own for _, own in states]
    return found


# Verbs.


def _inspect(args: argparse.Namespace) -> int:
    uri = _prefix(args.place)
    if uri is not None:
        _list(uri)
        print()
    checkpoint = _read(args.place, args.step, mmap=True)
    state = checkpoint["state_dict"]
    _table([], _facts(checkpoint))
    if args.tensors:
        print()
        _table(
            ["tensor", "type", "shape", "size"],
            [[n, str(t.dtype).removeprefix("torch."), list(t.shape), _size(t.nbytes)] for n, t in state.items()],
        )
    return 0


def _list(uri: str) -> None:
    from everstep.checkpoint.storage import open_storage
    from everstep_protocol.checkpoints import MARKERS, newest_first

    storage = open_storage(uri)
    rows: list[list[Any]] = []
    for found in newest_first(entry.key for entry in storage.list(MARKERS)):
        marker, wrong = _marker(storage, found)
        if marker is None:
            rows.append([found.name, found.step, wrong])
            continue
        size = sum(file.size for file in marker.files)
        kept = "for ever" if marker.keep_forever else ""
        rows.append([found.name, found.step, _when(marker.time), marker.world_size, _size(size), marker.parent, kept])
    _table(["name", "step", "saved", "ranks", "size", "parent", "kept"], rows)


def _facts(checkpoint: dict[str, Any]) -> list[list[Any]]:
    own, state = checkpoint.get("everstep", {}), checkpoint["state_dict"]
    wrote = f"everstep {own['version']}" if "version" in own else "Lightning"
    parameters, size = sum(t.numel() for t in state.values()), _size(sum(t.nbytes for t in state.values()))
    facts: list[list[Any]] = [
        ["written by", f"{wrote}, keys of Lightning {checkpoint.get('pytorch-lightning_version', 'unknown')}"],
        ["epoch", checkpoint.get("epoch")],
        ["step", checkpoint.get("global_step")],
        ["weights", f"{parameters:,} numbers in {len(state)} tensors, {size}"],
        ["resumes", _resumes(checkpoint)],
    ]
    for kind in ("", "datamodule_"):
        for name, value in checkpoint.get(f"{kind}hyper_parameters", {}).items():
            facts.append([f"{kind}hparam {name}", repr(value)])
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        for group in optimizer.get("param_groups", []):
            shown = [f"{key} {group[key]}" for key in ("lr", "weight_decay", "momentum", "betas") if key in group]
            facts.append([f"optimizer {number}", ", ".join(shown)])
    for name, value in checkpoint.get("callbacks", {}).items():
        shown = [
            f"{key} {_short(value[key])}" for key in value if key.startswith(("best_", "last_", "wait", "stopped"))
        ]
        facts.append([f"callback {name.split('{')[0]}", ", ".join(shown)])
    return facts


def _resumes(checkpoint: dict[str, Any]) -> str:
    if "optimizer_states" not in checkpoint:
        return "no: it holds weights only"
    own = checkpoint.get("everstep", {})
    if "fit" not in own:
        return "without random states, at its epoch and batch"
    ranks = sum(rank is not None for rank in own.get("ranks", []))
    exactly = f"exactly on {ranks} rank{'s' if ranks > 1 else ''}, " if ranks else ""
    return f"{exactly}on any number of ranks at epoch {own['fit']['epoch']}, position {own['fit']['position']}"


def _verify(args: argparse.Namespace) -> int:
    from everstep.checkpoint import ckpt
    from everstep.checkpoint.format import Damaged
    from everstep.checkpoint.restore import read_state
    from everstep.checkpoint.storage import open_storage
    from everstep.errors import ConfigurationError
    from everstep_protocol.checkpoints import MARKERS, newest_first

    uri = _prefix(args.place)
    if uri is None:
        damage = ckpt.damage(ckpt.as_place(args.place))
        print(damage or f"{args.place}: every byte has its checksum, and it holds nothing but data")
        return 1 if damage else 0
    storage, rows, damaged = open_storage(uri), [], False
    for checkpoint in newest_first(entry.key for entry in storage.list(MARKERS)):
        marker, wrong = _marker(storage, checkpoint)
        try:
            for rank in range(marker.world_size if marker else 0):
                read_state(storage, checkpoint, marker, rank, marker.world_size)  # type: ignore[arg-type,union-attr]
        except Damaged as damage:
            wrong = str(damage)
        damaged = damaged or bool(wrong)
        rows.append([checkpoint.name, checkpoint.step, wrong or "good: every file has its SHA-256"])
    if not rows:
        raise ConfigurationError(f"{uri} holds no checkpoints of a run")
    _table(["name", "step", "state"], rows)
    return 1 if damaged else 0


def _convert(args: argparse.Namespace) -> int:
    from everstep.checkpoint import ckpt

    if args.trust:
        from everstep.checkpoint.trusted import unpickled

        checkpoint, left_out = unpickled(ckpt.as_place(args.source))
        for what in left_out:
            print(f"everstep: left out, as it is no plain data: {what}", file=sys.stderr)
        ckpt.check(args.source, checkpoint)
    else:
        checkpoint = _read(args.source, args.step)
    ckpt.check_position(args.source, checkpoint)
    if args.target.endswith(".ckpt"):
        ckpt.write(ckpt.as_place(args.target), *ckpt.data_of(checkpoint))
    else:
        _write_prefix(args.target, checkpoint)
    print(f"{args.target}: step {checkpoint['global_step']}, epoch {checkpoint['epoch']}")
    return 0


def _write_prefix(target: str, checkpoint: dict[str, Any]) -> None:
    """As a run would have saved it in its first fit, so that a run with this uri goes on from it."""
    from concurrent.futures import ThreadPoolExecutor

    from torch._C._distributed_c10d import HashStore

    from everstep.checkpoint import ckpt
    from everstep.checkpoint.checkpointer import Checkpointer
    from everstep.checkpoint.storage import open_storage
    from everstep.errors import ConfigurationError
    from everstep_protocol.checkpoints import MARKERS

    storage = open_storage(ckpt.as_uri(ckpt.as_place(target)))
    if storage.list(MARKERS):
        raise ConfigurationError(f"{target} has checkpoints already: give an empty prefix")
    ranks = checkpoint.get("everstep", {}).pop("ranks", None) or [None]
    shared = {"calls": [], "within": "fit", "checkpoint": checkpoint}
    store = HashStore() if len(ranks) > 1 else None

    def write(rank: int) -> None:  # each rank of the run that saved it, in a thread of its own
        saver = Checkpointer(storage, rank=rank, world_size=len(ranks), store=store)
        saver.open()
        saver.save(0, checkpoint["global_step"], shared, ranks[rank], wait=True)
        saver.close()

    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(write, range(len(ranks))))


def _export(args: argparse.Namespace) -> int:
    from everstep.checkpoint import ckpt
    from everstep.checkpoint.save import Staging
    from everstep.errors import ConfigurationError

    if not args.target.endswith(".safetensors"):
        raise ConfigurationError(
            f"{args.target}: weights are exported as .safetensors; for ONNX or TorchScript load the module with "
            "load_from_checkpoint and call to_onnx or to_torchscript"
        )
    state = _read(args.source, args.step)["state_dict"]
    staging = Staging()
    staging.fill(state)
    ckpt.put(ckpt.as_place(args.target), staging.file(format="pt"))
    print(f"{args.target}: {len(state)} tensors, {_size(sum(t.nbytes for t in state.values()))}")
    return 0


# Words.


def _marker(storage: "Storage", checkpoint: "CheckpointId") -> "tuple[Marker | None, str]":
    from everstep.checkpoint.format import Damaged
    from everstep.checkpoint.restore import read_marker

    try:
        return read_marker(storage, checkpoint), ""
    except Damaged as damage:
        return None, str(damage)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    lines = [[str(cell) for cell in row] for row in ([heads] if heads else []) + list(rows)]
    widths = [max((len(line[i]) for line in lines if i < len(line) - 1), default=0) for i in range(12)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip())


def _size(count: int) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(len(str(count)) - 1, 12) // 3
    return f"{count / 1000**power:.1f} {units[power]}" if power else f"{count} B"


def _when(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(len(value))
    return f"{float(value):.6g}" if hasattr(value, "item") else str(value)
