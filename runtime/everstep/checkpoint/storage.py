"""The one seam to where checkpoints live: four methods, implemented for local files, object stores and fsspec."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from everstep.errors import ConfigurationError

#: How much is written, read or hashed at a time.
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    key: str  # below the prefix
    size: int  # bytes


@dataclass(frozen=True)
class Body:
    """Bytes to be stored, produced piece by piece so that they never exist twice in memory."""

    size: int
    pieces: Callable[[], Iterable[memoryview | bytes]]  # afresh for each attempt

    @classmethod
    def of(cls, data: bytes) -> "Body":
        return cls(len(data), lambda: (data,))


class Storage(Protocol):
    """Objects under one prefix. Keys are relative to it, with `/` between their parts.

    Every method raises StorageError, with a sentence that names the place and what to check, when the store cannot be
    reached, refuses, or is full. No method retries for longer than a few seconds: the caller knows how long it
    can wait.
    """

    uri: str

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        """Store the object; readers see all of it or nothing.

        Raises:
            FileExistsError: `create_only`, and there is one already.
        """
        ...

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        """The object's bytes in order.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def list(self, prefix: str) -> list[Entry]:
        """All objects whose key begins with `prefix`, a key that ends in `/`."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        ...


def read(storage: Storage, key: str) -> bytes:
    """A small object, whole."""
    return b"".join(storage.get(key))


def open_storage(uri: str, environ: Mapping[str, str] | None = None) -> Storage:
    """The storage of a checkpoint URI: file://, s3://, gs://, az:// or any scheme that fsspec knows.

    Raises:
        ConfigurationError: the URI is not one, or its scheme is unknown.
    """
    environ = os.environ if environ is None else environ
    parts = urlsplit(uri)
    if not parts.scheme:
        raise ConfigurationError(
            f"checkpoint uri {uri!r} has no scheme; write file:///absolute/path, s3://bucket/prefix, gs://… or az://…"
        )
    if parts.scheme == "file":
        from everstep.checkpoint.file import FileStorage

        return FileStorage(uri)
    if parts.scheme in ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure"):
        from everstep.checkpoint.object_store import ObjectStorage

        return ObjectStorage(uri, environ)
    from everstep.checkpoint.other import FsspecStorage

    return FsspecStorage(uri)
