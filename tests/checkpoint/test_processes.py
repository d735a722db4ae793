"""Real processes over gloo: written by one world, read by another; killed in the middle of a save."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everstep_operator.cluster.state import free_ports
from tests.checkpoint.conftest import Place

ROOT = Path(__file__).parents[2]


def start(place: Place, what: str, size: int, generation: int) -> list["subprocess.Popen[str]"]:
    (port,) = free_ports(1)
    common = {
        **os.environ, **place.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.checkpoint.worker", place.uri, what, str(generation)]
    return [
        subprocess.Popen(
            command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]


def run(place: Place, what: str, size: int, generation: int = 1) -> None:
    workers = start(place, what, size, generation)
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_three_write_two_and_one_read(place: Place) -> None:
    run(place, "save", 3)
    for generation, size in ((2, 2), (3, 1)):
        run(place, "load", size, generation)


def test_sharded_tensors_are_written_by_their_holders_and_read_by_any_world(folder: Place) -> None:
    run(folder, "save-sharded", 3)
    index = folder.bytes("data/000001-000-0000000005/index.json").decode()
    assert all(f"shard-0000{rank}" in index for rank in range(3))
    run(folder, "load-sharded", 2, 2)


def test_killed_in_the_middle_of_a_save(folder: Place) -> None:
    """Rank 1 never gets its data written; all are killed. The step does not exist, and its remains are swept."""
    workers = start(folder, "hang", 2, 1)
    try:
        assert workers[0].stdout is not None
        assert workers[0].stdout.readline() == "saving\n"
        deadline = time.monotonic() + 60
        while not any(key.endswith("index.json") for key in folder.listing("data/")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert folder.listing("data/") != []
    assert folder.listing("markers/") == []
    run(folder, "save", 2, 2)
    assert {key.split("/")[1][:6] for key in folder.listing("data/")} == {"000002"}
