"""`everstep pack`: the manifest with the files beside it in it, for `kubectl apply -f -`."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

HELP = "print a manifest with your files in trainer.code, for kubectl apply -f -"

_DESCRIPTION = """\
Prints the TrainingRun of a manifest with files and folders in its trainer.code, so that the same script runs in any
image:  everstep pack -f trainingrun.yaml train.py model/ | kubectl apply -f -
For more than small text files make an archive and name it in trainer.code.archive."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "-f", "--filename", required=True, type=Path, metavar="MANIFEST", help="file with a TrainingRun"
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders below the manifest's")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 printed, 2 the manifest or a file is no good."""
    import yaml

    from everstep_operator.api.manifest import ManifestError, load, parse

    folder = args.filename.absolute().parent
    try:
        load(args.filename)
        document = yaml.safe_load(args.filename.read_text(encoding="utf-8"))
        files = [{"path": path, "content": text} for path, text in _read(args.paths, folder)]
        document["spec"]["trainer"]["code"] = {"files": files}
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
        parse(text, str(args.filename))
    except ManifestError as error:
        return _error(str(error))
    except OSError as error:
        return _error(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _error(str(error))
    sys.stdout.write(text)
    return 0


def _read(paths: list[Path], folder: Path) -> Iterator[tuple[str, str]]:
    """Paths below the folder, and texts. Raises ValueError: outside of it, or no text; OSError."""
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        for file in inside if path.is_dir() else [path]:
            try:
                name = Path(os.path.abspath(file)).relative_to(folder).as_posix()  # without a ..
                yield name, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{file} is no text: put it into an archive, for trainer.code.archive") from None
            except ValueError:
                raise ValueError(f"{file} is not below {folder}, where the manifest lies: put it there") from None


def _error(message: str) -> int:
    print(f"everstep pack: {message}", file=sys.stderr)
    return 2
