"""Places for checkpoints: a folder, and a bucket of a real S3 server. Most tests run in both."""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.storage import Body, Storage, open_storage, read
from everstep_operator.cluster import s3
from everstep_protocol.checkpoints import Owner

RUN = Owner("default", "digits", "uid-1")


@dataclass(frozen=True)
class Place:
    uri: str
    environ: dict[str, str]

    def storage(self) -> Storage:
        return open_storage(self.uri, {**os.environ, **self.environ})

    def listing(self, prefix: str = "") -> list[str]:
        folders = [prefix] if prefix else ["data/", "markers/", "probes/"]
        storage = self.storage()
        return sorted(entry.key for folder in folders for entry in storage.list(folder))

    def bytes(self, key: str) -> bytes:
        return read(self.storage(), key)

    def write(self, key: str, data: bytes) -> None:
        self.storage().put(key, Body.of(data))

    def delete(self, *keys: str) -> None:
        self.storage().delete(keys)


@pytest.fixture(scope="session")
def s3_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a client of the S3 server of this session needs."""
    with s3.serve(tmp_path_factory.mktemp("s3")) as environ:
        yield environ


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(f"file://{tmp_path}/checkpoints", {})
    return Place(f"s3://tests/{uuid.uuid4().hex}", request.getfixturevalue("s3_environ"))


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/checkpoints", {})


@pytest.fixture
def make() -> Iterator[Callable[..., Checkpointer]]:
    """Builds checkpointers of the run `RUN` that are closed at the end."""
    made: list[Checkpointer] = []

    def build(place: Place, **options: Any) -> Checkpointer:
        checkpointer = Checkpointer(place.storage(), **{"run": RUN, **options})
        made.append(checkpointer)
        return checkpointer

    yield build
    for checkpointer in made:
        checkpointer.close()


def saving_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "everstep-checkpoint"}


class World:
    """Several ranks as threads over one store."""

    def __init__(self, place: Place, size: int, **options: Any) -> None:
        self._before = saving_threads()  # of other tests' scripts, which end with the process
        store = torch.distributed.HashStore()
        self.members = [
            Checkpointer(place.storage(), rank=rank, world_size=size, store=store, **{"run": RUN, **options})
            for rank in range(size)
        ]
        self._pool = ThreadPoolExecutor(size)

    def each(self, action: Callable[[Checkpointer, int], Any]) -> list[Any]:
        """What `action` returns, or raises, by rank."""

        def guarded(rank: int) -> Any:
            try:
                return action(self.members[rank], rank)
            except Exception as error:
                return error

        return list(self._pool.map(guarded, range(len(self.members))))

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.each(lambda member, _: member.close())
        self._pool.shutdown()
        assert saving_threads() <= self._before


def state(step: int) -> dict[str, Any]:
    """A shared tree whose values tell the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {f"layer{n}.weight": torch.randn(7, n + 1, generator=generator) for n in range(5)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.randn(7, generator=generator)}}
        },
        "loop": {"step": step},
    }


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, types included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        return left.contiguous().view(-1).view(torch.uint8).equal(right.contiguous().view(-1).view(torch.uint8))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)
