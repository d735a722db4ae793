"""What loggers share that write files: <save_dir>/<name>/version_<n>, hparams.yaml and code.yaml in it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everstep.loggers.base import Logger
from everstep.loggers.hparams import plain, write_yaml


class FolderLogger(Logger):
    """The version is the next free one, unless given; it is chosen when it is first asked for."""

    def __init__(
        self, save_dir: str | os.PathLike[str], name: str | None, version: int | str | None, prefix: str = ""
    ) -> None:
        """`prefix`: before each metric's name, with a dash between them."""
        self._save_dir = Path(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = f"{prefix}-" if prefix else ""
        self.hparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Of the experiment: the folder below save_dir."""
        return self._name

    @property
    def save_dir(self) -> str:
        """The folder above those of experiments."""
        return str(self._save_dir)

    @property
    def root_dir(self) -> str:
        """The folder of all versions."""
        return str(self._save_dir / self._name)

    @property
    def version(self) -> int | str:
        """A number, the next free one if none was given, or a name."""
        if self._version is None:
            taken = [re.fullmatch(r"version_(\d+)", path.name) for path in Path(self.root_dir).glob("version_*")]
            self._version = max((int(match[1]) for match in taken if match), default=-1) + 1
        return self._version

    def take_version(self, version: int | str | None) -> None:
        self._version = version

    @property
    def log_dir(self) -> str:
        version = self.version
        return os.path.join(self.root_dir, version if isinstance(version, str) else f"version_{version}")

    def log_hyperparams(self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        self.hparams.update(plain(params))
        write_yaml(Path(self.log_dir) / "hparams.yaml", self.hparams)

    def log_code(self, code: Mapping[str, Any]) -> None:
        write_yaml(Path(self.log_dir) / "code.yaml", code)

    def prefixed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics with the prefix before their names."""
        return {f"{self._prefix}{name}": value for name, value in metrics.items()} if self._prefix else dict(metrics)
