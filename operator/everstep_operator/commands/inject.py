"""`everstep inject`: copy Everstep into a folder that another image has on its PYTHONPATH (trainer.injectEverstep)."""

import argparse
import shutil
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

HELP = "copy Everstep's packages into a folder (runs in init containers, for images that lack it)"

#: Everstep itself, and those of its dependencies that any Python and torch will do for. What has to be built for one
#: Python version, numpy and torch, is the image's own (and fsspec is torch's).
PACKAGES = ("everstep", "everstep_protocol", "everstep_operator", "obstore", "safetensors")
REQUIRED = PACKAGES[:3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="an existing folder; what it holds of Everstep is replaced")


def main(args: argparse.Namespace) -> int:
    try:
        for name in PACKAGES:
            source = _location(name)
            if source is not None:
                _copy(source, args.folder / name)
            elif name in REQUIRED:
                print(f"everstep inject: {name} is not installed here", file=sys.stderr)
                return 1
        _copy_metadata(args.folder)  # the sub-commands of `everstep` are found in there
    except OSError as error:
        print(f"everstep inject: {error.filename or args.folder}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _location(name: str) -> Path | None:
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def _copy_metadata(folder: Path) -> None:
    files = [path for path in distribution("everstep").files or [] if path.parent.name.endswith(".dist-info")]
    for path in files:
        target = folder / path.parent.name
        target.mkdir(exist_ok=True)
        shutil.copyfile(str(path.locate()), target / path.name)
