"""Files of loggers and profilers below <checkpoint uri>/artifacts, so that they outlive the pod that writes them.

They are copied there with each checkpoint and when a Trainer call ends, and fetched by a life on another node before it
goes on with them. A store that does not answer costs nothing but a warning: the next copy brings what is missing.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from everstep.checkpoint.storage import CHUNK_BYTES, Body, Storage
from everstep.errors import StorageError

log = logging.getLogger("everstep.checkpoint")

FOLDER = "artifacts"


class Artifacts:
    """Folders of one process, each under a name of its own. Used by one rank."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stored: dict[str, tuple[int, int]] = {}  # size and time of change of what is there, by key

    def put(self, folders: Iterable[tuple[str, str]]) -> None:
        """Copy what has changed. Pairs of a folder here and its name there. From any one thread at a time."""
        try:
            for folder, name in folders:
                for path in sorted(Path(folder).rglob("*")):
                    # Checkpoint files have a way of their own: ModelCheckpoint writes them below the uri itself.
                    if path.is_file() and path.suffix != ".ckpt":
                        self._put(path, f"{FOLDER}/{name}/{path.relative_to(folder).as_posix()}")
        except (StorageError, OSError) as error:
            log.warning("files of loggers were not copied to %s: %s", self._storage.uri, error)

    def _put(self, path: Path, key: str) -> None:
        about = path.stat()
        if self._stored.get(key) != (about.st_size, about.st_mtime_ns):
            self._storage.put(key, Body(about.st_size, lambda: _first(path, about.st_size)))
            self._stored[key] = (about.st_size, about.st_mtime_ns)

    def fetch(self, folder: str, name: str) -> None:
        """Bring back what an earlier life has left there. Of a file that is here too the longer one counts: logs grow.

        Raises:
            StorageError: the store cannot be reached.
        """
        prefix = f"{FOLDER}/{name}/"
        for entry in self._storage.list(prefix):
            path = Path(folder, entry.key.removeprefix(prefix))
            if path.suffix == ".ckpt" or (path.exists() and path.stat().st_size >= entry.size):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.new")
            with fresh.open("wb") as file:
                for piece in self._storage.get(entry.key):
                    file.write(piece)
            fresh.replace(path)


def _first(path: Path, size: int) -> Iterator[bytes]:
    """So many bytes of a file that may be growing."""
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, CHUNK_BYTES))):
            size -= len(piece)
            yield piece
