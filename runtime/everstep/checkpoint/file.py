"""Checkpoints in a folder that every node sees: a local disk on one node, NFS, Lustre …"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from everstep.checkpoint.storage import CHUNK_BYTES, Body, Entry
from everstep.errors import ConfigurationError, StorageError

_TEMPORARY = ".writing-"


class FileStorage:
    """Objects are files, written under another name, flushed to the disk and then renamed."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigurationError(
                f"checkpoint uri {uri!r}: a file uri has three slashes and an absolute path, file:///path/to/folder"
            )
        self.uri = uri.rstrip("/")
        self.root = Path(unquote(parts.path))

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        with self.writing(key, create_only=create_only) as file:
            for piece in body.pieces():
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]

    @contextlib.contextmanager
    def writing(self, key: str, *, create_only: bool = False, buffering: int = 0) -> Iterator[Any]:
        """A binary file to write into. The object is there when the block ends, and not if it ends by an exception."""
        path = self.root / key
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}-{path.name}")
        with self._errors("write", path, but=() if not create_only else (FileExistsError,)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            try:
                with temporary.open("xb", buffering=buffering) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                if create_only:
                    os.link(temporary, path)  # fails where rename would replace
                else:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        path = self.root / key
        with self._errors("read", path, but=(FileNotFoundError,)):
            file = path.open("rb", buffering=0)
        with file:
            while True:
                with self._errors("read", path):
                    piece = file.read(CHUNK_BYTES)
                if not piece:
                    return
                yield piece

    def list(self, prefix: str) -> list[Entry]:
        entries = []
        with self._errors("list", self.root / prefix):
            for folder, _, names in os.walk(self.root / prefix, onerror=_raise_unless_missing):
                for name in names:
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        entries.append(Entry(path.relative_to(self.root).as_posix(), path.stat().st_size))
        return entries

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.root / key
            with self._errors("delete", path):
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty yet
                    path.parent.rmdir()

    @contextlib.contextmanager
    def _errors(self, verb: str, path: Path, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
        try:
            yield
        except but:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = "no space left: free some, lower spec.checkpoint.keep or take another uri"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                what = f"not permitted ({error.strerror}): check who owns the folder and how it is mounted"
            else:
                what = error.strerror or str(error)
            raise StorageError(f"cannot {verb} {path} of checkpoint uri {self.uri}: {what}") from error


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
