"""One-file checkpoints, `.ckpt`: Lightning's keys and one of our own, in torch's file format.

Lightning reads them, and `torch.load(path, weights_only=True)`. We read Lightning's. Nothing that is read is ever
unpickled into anything but data; `everstep checkpoint convert --trust` is the one exception.
"""

import contextlib
import os
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from everstep.checkpoint.file import FileStorage
from everstep.checkpoint.format import from_json, to_json
from everstep.checkpoint.storage import CHUNK_BYTES, Body, Storage, open_storage
from everstep.errors import ConfigurationError, StorageError

#: Of what is under "everstep". A reader refuses a higher one.
FORMAT = 1
#: The Lightning whose layout of keys ours is.
LIGHTNING_LAYOUT = "2.6.0"

Tree = dict[str, Any]


def is_url(place: str) -> bool:
    return "://" in place and not place.startswith("file://")


def as_place(path: str | os.PathLike[str]) -> str:
    """An absolute path, or a URL as it is."""
    place = os.fspath(path)
    if place.startswith("file://"):
        place = urlsplit(place).path
    return place if is_url(place) else os.path.realpath(os.path.expanduser(place))


def as_uri(place: str) -> str:
    """Of a path or URL, for `open_storage`."""
    return place if "://" in place else Path(place).as_uri()


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


# Writing.


def data_of(checkpoint: Tree) -> tuple[Any, dict[str, torch.Tensor]]:
    """Its tree and its tensors, without copies, to be put together again by `write`.

    Raises:
        ConfigurationError: it holds something that is no data, such as an object of a class; says where.
    """
    return to_json(checkpoint, "checkpoint")


def write(place: str, tree: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Write the file, piece by piece: it never exists in memory. Readers see all of it, or what was there before.

    Raises:
        StorageError: it could not be written.
    """
    checkpoint = _without_numpy(from_json(tree, tensors))
    storage, key = _open(place)
    if isinstance(storage, FileStorage):
        with storage.writing(key, buffering=CHUNK_BYTES) as file:
            torch.save(checkpoint, file)
        return
    size = sum(tensor.nbytes for tensor in tensors.values())  # what decides how a store puts it
    storage.put(key, Body(size, lambda: _pumped(lambda file: torch.save(checkpoint, file))))


def put(place: str, body: Body) -> None:
    """A file with these bytes, whole or not at all."""
    storage, key = _open(place)
    storage.put(key, body)


def _pumped(save: Callable[[Any], None]) -> Iterator[bytes]:
    """What `save` writes into the file it is given, as pieces: torch can only push, a store can only pull."""
    source, sink = os.pipe()
    failure: list[BaseException] = []

    def push() -> None:
        try:
            with os.fdopen(sink, "wb") as file:
                save(file)
        except BrokenPipeError:  # nobody wants the rest
            pass
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=push, name="everstep-ckpt", daemon=True)
    with os.fdopen(source, "rb", buffering=0) as file:
        thread.start()
        while piece := file.read(CHUNK_BYTES):
            yield piece
    thread.join()
    if failure:
        raise failure[0]


def _without_numpy(value: Any) -> Any:
    """Arrays as tagged tensors, numbers as Python's: torch's safe reader knows no numpy."""
    if isinstance(value, np.ndarray):
        return {"$array": torch.from_numpy(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_numpy(item) for item in value)
    return value


def _with_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$array"}:
            return value["$array"].numpy()
        return {key: _with_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_with_numpy(item) for item in value)
    return value


# Reading.


def refuse_unpickling(weights_only: bool | None) -> None:
    """
    Raises:
        ConfigurationError: `weights_only` is False.
    """
    if weights_only is False:
        raise ConfigurationError(
            "weights_only=False would unpickle, which runs code that is in the file: leave it out. For a file that "
            "needs it: everstep checkpoint convert --trust old.ckpt new.ckpt"
        )


def read(place: str | os.PathLike[str], map_location: Any = None, *, mmap: bool = False) -> Tree:
    """The checkpoint in a file or at a URL.

    Args:
        map_location: as torch.load's; None: as saved where that device is here, else on the CPU.
        mmap: leave tensors in the file until they are used; for a look at one.

    Raises:
        ConfigurationError: there is none, it is no checkpoint, it needs unpickling, or a newer everstep wrote it.
        StorageError: it cannot be reached, or is damaged.
    """
    place = as_place(place)
    checkpoint = read_data(place, map_location, mmap=mmap)
    check(place, checkpoint)
    return checkpoint  # type: ignore[no-any-return]


def check(place: str, checkpoint: Any) -> None:
    """
    Raises:
        ConfigurationError: it is no checkpoint of a Trainer, or a newer everstep wrote it.
    """
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        has = f"a dict with {sorted(map(str, checkpoint))[:8]}" if isinstance(checkpoint, dict) else type(checkpoint)
        raise ConfigurationError(
            f'{place} is no checkpoint of a Trainer: it holds {has}, without "state_dict". Load weights alone with '
            "torch.load and load_state_dict"
        )
    own = checkpoint.get("everstep", {})
    if own.get("format", 0) > FORMAT:
        raise ConfigurationError(
            f"{place} has format {own['format']} (everstep {own.get('version', 'unknown')} wrote it); this everstep "
            f"reads up to format {FORMAT}. Upgrade everstep to the version that wrote it"
        )


def check_position(place: str | os.PathLike[str], checkpoint: Tree) -> None:
    """
    Raises:
        ConfigurationError: it has weights, but does not say where a training stood.
    """
    if "global_step" not in checkpoint or "epoch" not in checkpoint:
        raise ConfigurationError(
            f'{place} has a "state_dict" but not where a training stood ("global_step", "epoch"): load it with '
            "load_from_checkpoint of the module's class, and train that"
        )


def read_data(place: str | os.PathLike[str], map_location: Any = None, *, mmap: bool = False) -> Any:
    """What any file of torch's holds, as far as it is data. Arguments and errors as of `read`."""
    place = as_place(place)
    where = _here if map_location is None else map_location
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # whose it is and why it fails is said below
            if is_url(place):
                with tempfile.TemporaryFile() as file:
                    fetch(place, file)
                    checkpoint = torch.load(file, where, weights_only=True)
            else:
                checkpoint = torch.load(place, where, weights_only=True, mmap=mmap and zipfile.is_zipfile(place))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigurationError(missing(place)) from None
    except UnpicklingError as error:
        if "GLOBAL" not in str(error):  # it names no class: not one byte of it makes sense
            raise StorageError(
                f"{place} is damaged, or no checkpoint file: it is neither torch's nor Lightning's"
            ) from None
        raise ConfigurationError(_needs_trust(place, str(error))) from None
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        why = next(iter(str(error).splitlines()), "")
        why = why if " " in why else "it is cut short, or was never one"  # torch tells a lone byte, or nothing
        raise StorageError(f"{place} is damaged, or no checkpoint file: {why}") from error
    return _with_numpy(checkpoint)


def damage(place: str) -> str:
    """What is wrong with a file; "" if it is as it was written, and data only."""
    with tempfile.TemporaryFile() as file:
        try:
            fetch(place, file)
            with zipfile.ZipFile(file) as archive:
                wrong = archive.testzip()
            if wrong is not None:
                return f"{place} is damaged: its part {wrong} has changed since it was written"
            read(place, "cpu", mmap=True)
        except FileNotFoundError:
            return missing(place)
        except zipfile.BadZipFile:
            return f"{place} is damaged, or no checkpoint file: it is cut short, or was never one"
        except (ConfigurationError, StorageError) as error:
            return str(error)
    return ""


def fetch(place: str, file: Any) -> None:
    """Copy it into an open file, which stands at its beginning then.

    Raises:
        FileNotFoundError: there is none.
    """
    if os.path.isdir(place):
        raise FileNotFoundError(place)
    storage, key = _open(place)
    for piece in storage.get(key):
        file.write(piece)
    file.seek(0)


def exists(place: str) -> bool:
    if not is_url(place):
        return os.path.exists(place)
    storage, key = _open(place)
    return any(entry.key == key for entry in storage.list(""))


def listed(folder: str) -> list[str]:
    """The `.ckpt` files of a folder."""
    if not is_url(folder):
        return [str(path) for path in sorted(Path(folder).glob("*.ckpt"))]
    names = sorted(entry.key for entry in open_storage(folder).list(""))
    return [join(folder, name) for name in names if name.endswith(".ckpt") and "/" not in name]


def delete(place: str) -> None:
    """One that is not there is no error."""
    if is_url(place):
        storage, key = _open(place)
        storage.delete([key])
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)


def link(target: str, place: str) -> None:
    """A symbolic link at `place`, by a relative path."""
    fresh = f"{place}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(os.path.relpath(target, os.path.dirname(place)), fresh)
    os.replace(fresh, place)


def _open(place: str) -> tuple[Storage, str]:
    folder, _, name = place.rpartition("/")
    return open_storage(as_uri(folder or "/")), name


def _here(storage: Any, location: str) -> Any:
    """Leave tensors where they were, unless there is no such device here."""
    kind = location.split(":")[0]
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return None
    return storage.cpu() if kind in ("cuda", "mps", "xla", "xpu", "hpu") else None


def missing(place: str) -> str:
    """That there is no such file, and which there are."""
    return f"there is no checkpoint file {place}{_neighbours(place)}"


def _neighbours(place: str) -> str:
    if is_url(place):
        return ""
    found = [Path(path).name for path in listed(str(Path(place).parent))]
    return f"; the folder has {', '.join(found[:8])}" if found else ""


def _needs_trust(place: str, error: str) -> str:
    words = error.split("GLOBAL ")
    what = f" ({words[1].split()[0]})" if len(words) > 1 and words[1].split() else ""
    return (
        f"{place} holds objects that only unpickling can make{what}, and unpickling runs code that is in the file. If "
        f"you trust it: everstep checkpoint convert --trust {place} new.ckpt"
    )
