"""Save, restore, go on: in a folder and in a real S3 server, one rank and several."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.ckpt_writer import CkptWriter
from everstep.checkpoint.storage import Body
from everstep.environment import Environment
from everstep.errors import ConfigurationError, StorageError
from everstep_protocol import codec
from everstep_protocol.checkpoints import CheckpointId, Marker
from tests.checkpoint.conftest import RUN, Place, World, same, state

Make = Callable[..., Checkpointer]


def test_a_fresh_prefix_has_nothing(place: Place, make: Make) -> None:
    checkpointer = make(place)
    assert checkpointer.open() is None
    assert checkpointer.last_checkpoint is checkpointer.resumed_from is checkpointer.not_durable_since is None


def test_what_was_saved_comes_back(place: Place, make: Make) -> None:
    changes: list[int] = []
    first = make(place, on_change=lambda: changes.append(1))
    first.open()
    changes.clear()
    own = {"rng": torch.arange(5), "python": (3, (1, 2), None)}
    name = first.save(0, 10, state(10), own)
    first.wait()
    assert name == "000001-000-0000000010"
    assert first.last_checkpoint is not None
    assert (first.last_checkpoint.step, first.last_checkpoint.generation) == (10, 1)
    assert (first.last_checkpoint.bytes or 0) > 100
    assert (first.last_checkpoint.seconds or 0) > 0
    assert first.last_checkpoint.uri.startswith(place.uri)
    assert changes
    first.close()

    second = make(place)
    restored = second.open()
    assert restored is not None
    assert (restored.name, restored.call, restored.step) == (name, 0, 10)
    assert same(restored.shared, state(10))
    assert same(restored.rank, own)
    assert restored.info.note == ""
    assert second.resumed_from == second.last_checkpoint == restored.info
    # The same round, but the prefix holds that generation already: the keys get a new one, and the marker its parent.
    assert second.save(1, 10, state(10), own, wait=True) == "000002-001-0000000010"
    marker = codec.loads(Marker, place.bytes("markers/000002-001-0000000010.json"))
    assert marker.parent == name
    assert marker.run_uid == RUN.uid
    # The probe and everything else that is no checkpoint is gone.
    assert {key.split("/")[0] for key in place.listing()} == {"data", "markers"}


def test_the_state_is_that_of_the_call(folder: Place, make: Make) -> None:
    checkpointer = make(folder)
    checkpointer.open()
    weights, numbers = torch.zeros(1000), [0]
    for step in range(1, 6):
        weights.fill_(step)
        numbers[0] = step
        checkpointer.save(0, step, {"weights": weights, "numbers": numbers}, None)
        weights.fill_(-1)
        numbers[0] = -1
    checkpointer.wait()
    restored = make(folder).open()
    assert restored is not None
    assert restored.shared["weights"].eq(5).all()
    assert restored.shared["numbers"] == [5]


def test_the_state_may_change_its_shape(folder: Place, make: Make) -> None:
    checkpointer = make(folder)
    checkpointer.open()
    checkpointer.save(0, 1, {"a": torch.ones(3)}, None, wait=True)
    checkpointer.save(0, 2, {"a": torch.ones(4), "b": torch.ones(2, dtype=torch.int32)}, None, wait=True)
    checkpointer.save(0, 3, {"none": 1}, None, wait=True)
    assert checkpointer.load("000001-000-0000000002").shared["a"].shape == (4,)
    assert checkpointer.load("000001-000-0000000003").shared == {"none": 1}


def test_saving_the_same_step_twice_is_one_checkpoint(folder: Place, make: Make) -> None:
    checkpointer = make(folder)
    checkpointer.open()
    checkpointer.save(0, 4, state(4), None)
    checkpointer.save(0, 4, state(4), None, wait=True)
    assert folder.listing("markers/") == ["markers/000001-000-0000000004.json"]


def test_load_takes_a_certain_one(place: Place, make: Make) -> None:
    checkpointer = make(place)
    checkpointer.open()
    names = [checkpointer.save(0, step, state(step), {"own": step}, wait=True) for step in (10, 20)]
    restored = checkpointer.load(names[0])
    assert restored.step == 10
    assert same(restored.shared, state(10))
    assert restored.rank == {"own": 10}
    with pytest.raises(StorageError, match="its marker is gone"):
        checkpointer.load("000001-000-0000000099")
    with pytest.raises(StorageError, match="not the name of a checkpoint"):
        checkpointer.load("latest")


def test_old_ones_are_pruned_and_some_stay_for_ever(place: Place, make: Make) -> None:
    checkpointer = make(place, keep=2)
    checkpointer.open()
    for step in range(10, 70, 10):
        checkpointer.save(step // 40, step, state(step), None, keep_forever=step == 20, wait=True)
    checkpointer.close()
    steps = [CheckpointId.parse(key.split("/")[1].removesuffix(".json")).step for key in place.listing("markers/")]  # type: ignore[union-attr]
    assert sorted(steps) == [20, 50, 60]
    assert {key.split("/")[1] for key in place.listing("data/")} == {
        key.split("/")[1].removesuffix(".json") for key in place.listing("markers/")
    }
    later = make(place, keep=2)
    later.open()
    later.save(2, 70, state(70), None, wait=True)
    later.close()
    assert "markers/000001-000-0000000020.json" in place.listing("markers/")
    assert same(make(place).load("000001-000-0000000020").shared, state(20))


def test_after_a_roll_back_the_abandoned_branch_does_not_win(place: Place, make: Make) -> None:
    first = make(place, keep=9)
    first.open()
    for step in (10, 20, 30):
        first.save(0, step, state(step), None, wait=True)
    place.write("data/000001-000-0000000030/index.json", b"{}")
    second = make(place, keep=9)
    restored = second.open()
    assert restored is not None
    assert restored.step == 20
    second.save(0, 25, state(25), None, wait=True)
    third = make(place, keep=2)
    restored = third.open()
    assert restored is not None
    assert (restored.step, restored.info.note) == (25, "")
    third.save(0, 26, state(26), None, wait=True)
    third.close()
    assert place.listing("markers/") == ["markers/000002-000-0000000025.json", "markers/000003-000-0000000026.json"]


def test_leftovers_of_older_generations_are_swept(place: Place, make: Make) -> None:
    checkpointer = make(place)
    checkpointer.open()
    checkpointer.save(0, 10, state(10), None, wait=True)
    place.write("data/000001-000-0000000020/shard-00000.safetensors", b"half")
    place.write("data/somebody-elses/file", b"stays")
    later = make(place)
    restored = later.open()
    later.close()
    assert restored is not None
    assert restored.info.note == "step 20: it has no marker, so it was never completed; fell back to step 10"
    assert {key.split("/")[1] for key in place.listing("data/")} == {"000001-000-0000000010", "somebody-elses"}


@pytest.mark.parametrize("size", [2, 3])
def test_many_ranks_write_each_tensor_once_and_any_world_reads_it(place: Place, make: Make, size: int) -> None:
    with World(place, size) as world:
        assert world.each(lambda member, rank: member.open()) == [None] * size
        world.each(lambda member, rank: member.save(0, 7, state(7), {"rank": rank, "rng": torch.full((3,), rank)}))
        assert world.each(lambda member, rank: member.wait()) == [None] * size
        assert all(member.last_checkpoint and member.last_checkpoint.step == 7 for member in world.members)
    index = json.loads(place.bytes("data/000001-000-0000000007/index.json"))
    files = [piece[0] for tensor in index["tensors"].values() for piece in tensor["pieces"]]
    assert len(files) == len(index["tensors"]) == 7
    assert len(set(files)) == size
    for other in {1, 2, 3, 4} - {size}:
        with World(place, other) as world:
            for restored in world.each(lambda member, rank: member.open()):
                assert same(restored.shared, state(7))
                assert restored.rank is None
                assert restored.info.world_size == size
    with World(place, size) as world:
        for rank, restored in enumerate(world.each(lambda member, rank: member.open())):
            assert same(restored.rank, {"rank": rank, "rng": torch.full((3,), rank)})


def test_a_rank_that_finds_damage_makes_all_fall_back(place: Place) -> None:
    with World(place, 3) as world:
        world.each(lambda member, rank: member.open())
        for step in (10, 20):
            world.each(lambda member, rank, step=step: member.save(0, step, state(step), {"rank": rank}, wait=True))
    place.write("data/000001-000-0000000020/rank-00002.safetensors", b"only rank 2 reads this")
    with World(place, 3) as world:
        for restored in world.each(lambda member, rank: member.open()):
            assert restored.step == 10
            assert same(restored.shared, state(10))
            assert "step 20: rank-00002.safetensors is truncated: 22 of" in restored.info.note
            assert restored.info.note.endswith("fell back to step 10")


def test_from_environment(folder: Place) -> None:
    assert Checkpointer.from_environment(Environment()) is None
    environment = Environment(
        run_name="digits", run_uid="1", checkpoint_uri=folder.uri, checkpoint_every_steps=5, generation=4
    )
    checkpointer = Checkpointer.from_environment(environment)
    assert checkpointer is not None
    assert checkpointer.every_steps == 5
    assert checkpointer.open() is None
    assert checkpointer.save(0, 1, {}, None, wait=True) == "000004-000-0000000001"
    checkpointer.close()
    with pytest.raises(ConfigurationError, match="has no scheme"):
        Checkpointer.from_environment(Environment(checkpoint_uri="/folder"))


class SlowPut:
    """A storage whose writes of data wait for permission."""

    def __init__(self, place: Place) -> None:
        self._storage = place.storage()
        self.uri = self._storage.uri
        self.go = threading.Event()
        self.list, self.get, self.delete = self._storage.list, self._storage.get, self._storage.delete

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        if key.startswith("data/"):
            assert self.go.wait(30)
        self._storage.put(key, body, create_only=create_only)


def test_c05_saving_does_not_wait_for_the_storage_and_uses_no_collective(folder: Place) -> None:
    """No process group exists here at all, so a collective anywhere would raise."""
    assert not torch.distributed.is_initialized()
    slow = SlowPut(folder)
    checkpointer = Checkpointer(slow, run=RUN)
    checkpointer.open()
    checkpointer.save(0, 1, state(1), None)
    assert folder.listing("markers/") == []
    assert checkpointer.last_checkpoint is None
    slow.go.set()
    checkpointer.wait()
    assert folder.listing("markers/") == ["markers/000001-000-0000000001.json"]
    checkpointer.close()


class Priorities:
    """A storage that notes the nice value of the thread that puts."""

    def __init__(self, place: Place) -> None:
        self._storage = place.storage()
        self.uri = self._storage.uri
        self.list, self.get, self.delete = self._storage.list, self._storage.get, self._storage.delete
        self.seen: dict[str, int] = {}

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        self.seen[key.split("/")[0]] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self._storage.put(key, body, create_only=create_only)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to whole processes")
def test_writing_gives_way_to_training(folder: Place) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    storage = Priorities(folder)
    checkpointer = Checkpointer(storage, run=RUN)
    checkpointer.open()
    checkpointer.save(0, 1, state(1), None, wait=True)
    checkpointer.close()
    assert storage.seen["data"] == storage.seen["markers"] == min(19, mine + 10)

    nice: list[int] = []
    writer = CkptWriter()
    writer.later(lambda: nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    writer.wait()
    assert nice == [min(19, mine + 10)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine, "training keeps its own"


def test_a_checkpoint_exists_only_when_every_rank_has_written(folder: Place) -> None:
    storages: Iterable[Any] = [SlowPut(folder), SlowPut(folder)]
    first, second = storages
    store = torch.distributed.HashStore()
    with World(folder, 2) as world:
        world.members = [
            Checkpointer(storage, rank=rank, world_size=2, store=store, run=RUN)
            for rank, storage in enumerate(storages)
        ]
        world.each(lambda member, rank: member.open())
        world.each(lambda member, rank: member.save(0, 1, state(1), rank))
        first.go.set()
        deadline = time.monotonic() + 20
        while not any(key.endswith("index.json") for key in folder.listing("data/")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert folder.listing("markers/") == []
        second.go.set()
        world.each(lambda member, rank: member.wait())
        assert len(folder.listing("markers/")) == 1
