"""Names and small files of a checkpoint prefix, readable by both halves without torch.

    <uri>/owner.json                                   whose prefix this is (create-only)
    <uri>/data/<generation>-<call>-<step>/<file>       index.json, state files, safetensors shards
    <uri>/markers/<generation>-<call>-<step>.json      written last, create-only: the checkpoint exists

`call` is the number of Trainer calls of the script that were complete: saves during the first `fit` have call 0, the
one that records its end has call 1 at the same step.

A checkpoint without a marker does not exist. Keys carry the generation, so a process of an old generation can never
overwrite what a newer one wrote. A marker names its parent; the newest checkpoint of the current lineage is that of the
highest (generation, call, step): after a roll-back the abandoned branch has a lower generation and does not win.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

FORMAT_VERSION = 1
OWNER_KEY = "owner.json"
MARKERS = "markers/"
DATA = "data/"
INDEX_FILE = "index.json"

_NAME = re.compile(r"^(\d{6,})-(\d{3,})-(\d{10,})$")


@dataclass(frozen=True, order=True)
class CheckpointId:
    """Identity and order of a checkpoint within its prefix."""

    generation: int
    call: int
    step: int

    @property
    def name(self) -> str:
        return f"{self.generation:06d}-{self.call:03d}-{self.step:010d}"

    @property
    def marker_key(self) -> str:
        return f"{MARKERS}{self.name}.json"

    @property
    def data_prefix(self) -> str:
        return f"{DATA}{self.name}/"

    @classmethod
    def parse(cls, name: str) -> "CheckpointId | None":
        """Of a name such as 000003-000-0000000120; None if it is something else."""
        match = _NAME.match(name)
        return cls(int(match[1]), int(match[2]), int(match[3])) if match else None


@dataclass(frozen=True)
class StoredFile:
    name: str  # below data_prefix
    size: int  # bytes
    sha256: str  # hex, of the whole file


@dataclass(frozen=True)
class Marker:
    """The commit record of one checkpoint."""

    format: int
    generation: int
    call: int
    step: int
    parent: str | None  # name of the checkpoint that this generation resumed from, or its own previous one
    world_size: int
    files: tuple[StoredFile, ...]
    time: float  # seconds since the epoch
    run_uid: str = ""
    everstep: str = ""  # version of the package that wrote it
    keep_forever: bool = False  # a completed Trainer call needs it: never pruned
    seconds: float | None = None  # from the copy of the state until this was written
    score: float | None = None  # value of the metric that Retention names, logged since the checkpoint before


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay besides the newest. 0 or "": none for this reason."""

    every_steps: int = 0  # the first at or after each multiple
    every_seconds: int = 0  # the first, and each that was saved at least so long after the last that stays
    metric: str = ""  # of what the run logs: the best by it
    mode: str = "min"  # min | max
    best: int = 1  # how many


@dataclass(frozen=True)
class Owner:
    """Whose prefix this is. Two runs on one URI are refused; a re-created one (same name, new uid) continues."""

    namespace: str
    name: str
    uid: str
    time: float = 0.0
    extra: dict[str, str] = field(default_factory=dict)


def newest_first(marker_keys: Iterable[str]) -> list[CheckpointId]:
    """Checkpoints named by the keys of a listing of markers/, in the order in which a resume tries them."""
    ids = (CheckpointId.parse(key.rsplit("/", 1)[-1].removesuffix(".json")) for key in marker_keys)
    return sorted((i for i in ids if i is not None), reverse=True)
