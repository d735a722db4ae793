"""Reading a checkpoint: nothing is handed out before all of it was verified against the marker's hashes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from everstep.checkpoint.format import Damaged, Index, from_json, read_tensors
from everstep.checkpoint.plan import rank_file
from everstep.checkpoint.storage import Storage, read
from everstep.errors import ConfigurationError
from everstep_protocol import codec
from everstep_protocol.checkpoints import FORMAT_VERSION, INDEX_FILE, CheckpointId, Marker, StoredFile

T = TypeVar("T")


@dataclass(frozen=True)
class _Format:
    format: int


def read_marker(storage: Storage, checkpoint: CheckpointId) -> Marker:
    """
    Raises:
        Damaged: there is none, or it is not one.
        ConfigurationError: a newer everstep wrote it.
    """
    try:
        text = read(storage, checkpoint.marker_key)
    except FileNotFoundError:
        raise Damaged("its marker is gone") from None
    try:
        # The format first: of a newer one nothing else is known.
        version = codec.loads(_Format, text).format
        if version > FORMAT_VERSION:
            raise ConfigurationError(
                f"checkpoint {checkpoint.name} in {storage.uri} has format {version}; this everstep reads up to format "
                f"{FORMAT_VERSION}. Upgrade everstep in the image of the run to the version that wrote it"
            )
        marker = codec.loads(Marker, text)
    except codec.BadMessage as error:
        raise Damaged(f"its marker is damaged ({error})") from None
    if CheckpointId(marker.generation, marker.call, marker.step) != checkpoint:
        raise Damaged("its marker is that of another checkpoint")
    return marker


def read_state(
    storage: Storage, checkpoint: CheckpointId, marker: Marker, rank: int, world_size: int
) -> tuple[Any, Any | None]:
    """The shared tree, and this rank's own: None if the world has another size now.

    Raises:
        Damaged: something is missing, cut short, changed, or not what it says it is.
    """
    files = {file.name: file for file in marker.files}

    def verified(name: str, parse: Callable[[Iterator[memoryview | bytes]], T]) -> T:
        if name not in files:
            raise Damaged(f"{name} is not among its files")
        return _verified(storage, checkpoint, files[name], parse)

    index = verified(INDEX_FILE, lambda stream: Index.loads(b"".join(stream)))
    needed = sorted({piece.file for stored in index.tensors.values() for piece in stored.pieces})
    contents: dict[str, dict[str, torch.Tensor]] = {name: verified(name, read_tensors)[0] for name in needed}
    shared = from_json(index.tree, index.assemble(contents))
    if marker.world_size != world_size:
        return shared, None
    name = rank_file(rank)
    tensors, metadata = verified(name, read_tensors)
    if "tree" not in metadata:
        raise Damaged(f"{name} holds no tree")
    return shared, from_json(_json(metadata["tree"]), tensors)


def _verified(
    storage: Storage,
    checkpoint: CheckpointId,
    file: StoredFile,
    parse: Callable[[Iterator[memoryview | bytes]], T],
) -> T:
    digest, size = hashlib.sha256(), 0

    def stream() -> Iterator[memoryview | bytes]:
        nonlocal size
        for piece in storage.get(checkpoint.data_prefix + file.name):
            digest.update(piece)
            size += len(piece)
            yield piece

    bytes_in = stream()
    result: T | None = None
    wrong: Damaged | None = None
    try:
        try:
            result = parse(bytes_in)
        except Damaged as error:
            wrong = error
        for _ in bytes_in:  # to the end, for the hash
            pass
    except FileNotFoundError:
        raise Damaged(f"{file.name} is missing") from None
    if size != file.size:
        how = "truncated" if size < file.size else "too long"
        raise Damaged(f"{file.name} is {how}: {size} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise Damaged(f"{file.name} has changed since it was written (its SHA-256 is another)")
    if wrong is not None:
        raise Damaged(f"{file.name}: {wrong}")
    return result  # type: ignore[return-value]  # parse returned


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {error}") from None
