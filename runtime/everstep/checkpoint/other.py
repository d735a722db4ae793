"""Any other scheme, through fsspec: hdfs://, sftp://, memory:// … An extra package may be needed for a scheme."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from everstep.checkpoint.storage import CHUNK_BYTES, Body, Entry
from everstep.errors import ConfigurationError, StorageError


class FsspecStorage:
    """`create_only` is as good as the file system's own exclusive creation; not all of them promise atomicity."""

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        try:
            self._files: Any
            self._files, root = fsspec.core.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"checkpoint uri {uri!r}: {error}") from None
        self._root = root.rstrip("/")

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        path = f"{self._root}/{key}"
        with self._errors("write", key):
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            if create_only:
                if self._files.exists(path):
                    raise FileExistsError(path)
                self._files.pipe_file(path, b"".join(body.pieces()), mode="create")
                return
            with self._files.open(path, "wb") as file:
                for piece in body.pieces():
                    file.write(piece)

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        with self._errors("read", key), self._files.open(f"{self._root}/{key}", "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    def list(self, prefix: str) -> list[Entry]:
        with self._errors("list", prefix):
            self._files.invalidate_cache()
            found = self._files.find(f"{self._root}/{prefix}", detail=True)
            skip = len(self._files._strip_protocol(self._root).rstrip("/")) + 1
            return [Entry(path[skip:], int(about["size"])) for path, about in found.items()]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{key}")

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, GeneratorExit):
            raise
        except Exception as error:  # every file system has its own
            raise StorageError(f"cannot {verb} {key} of checkpoint uri {self.uri}: {error}") from error
