"""`everstep fetch`: a folder of code out of a store, before the launcher starts (trainer.code.archive)."""

import argparse
import io
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

HELP = "unpack an archive from a store into a folder (runs in init containers, for trainer.code.archive)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", help="s3://bucket/code.tar.gz, file:///path/code.zip, …; .tar.gz, .tgz, .tar or .zip")
    parser.add_argument("folder", type=Path, help="where its files go; made if it is not there")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 the store or the archive is no good."""
    from everstep.errors import EverstepError

    try:
        unpack(_download(args.uri), args.uri, args.folder)
    except EverstepError as error:
        print(f"everstep fetch: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"everstep fetch: {error.filename or args.folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _download(uri: str) -> bytes:
    from everstep.checkpoint.storage import open_storage, read
    from everstep.errors import StorageError

    prefix, _, name = uri.rpartition("/")
    try:
        return read(open_storage(prefix), name)
    except FileNotFoundError:
        raise StorageError(f"there is no {uri}: upload the archive, or correct trainer.code.archive") from None


def unpack(data: bytes, name: str, folder: Path) -> None:
    """Files and folders only, none of them outside of `folder`.

    Raises:
        ConfigurationError: it is no such archive, or holds what does not belong there.
    """
    from everstep.errors import ConfigurationError

    try:
        members = _unzip(data) if name.endswith(".zip") else _untar(data)
        for path, content in members:
            place = PurePosixPath(path)
            if place.is_absolute() or ".." in place.parts:
                raise ConfigurationError(
                    f"{name} holds {path}, which lies outside of the folder: pack it with `tar czf`"
                )
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ConfigurationError(f"{name} cannot be unpacked: {error}") from None


def _untar(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
        return [(member.name, file.read()) for member, file in files if file is not None]


def _unzip(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist() if not entry.is_dir()]
