"""Every way in which a checkpoint can be spoilt: the run falls back to the one before and says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from everstep.checkpoint.checkpointer import Checkpointer, Restored
from everstep.errors import ConfigurationError, StorageRefusedError
from everstep_protocol import codec
from everstep_protocol.checkpoints import Marker, StoredFile
from tests.checkpoint.conftest import Place, same, state

Make = Callable[..., Checkpointer]
DATA = "data/000001-000-0000000040/"
MARKER = "markers/000001-000-0000000040.json"


@pytest.fixture
def saved(place: Place, make: Make) -> Place:
    """A place with checkpoints of steps 30 and 40."""
    checkpointer = make(place)
    checkpointer.open()
    for step in (30, 40):
        checkpointer.save(0, step, state(step), {"own": step}, wait=True)
    checkpointer.close()
    return place


def fell_back(place: Place, make: Make, why: str) -> Restored:
    restored = make(place).open()
    assert restored is not None
    assert restored.step == 30
    assert same(restored.shared, state(30))
    assert restored.rank == {"own": 30}
    assert why in restored.info.note
    assert restored.info.note.endswith("fell back to step 30")
    return restored


def test_half_written(saved: Place, make: Make) -> None:
    saved.delete(MARKER, DATA + "index.json")
    fell_back(saved, make, "step 40: it has no marker, so it was never completed")


def test_newest_marker_gone(saved: Place, make: Make) -> None:
    saved.delete(MARKER)
    fell_back(saved, make, "step 40: it has no marker")


@pytest.mark.parametrize("file", ["shard-00000.safetensors", "rank-00000.safetensors", "index.json"])
def test_truncated(saved: Place, make: Make, file: str) -> None:
    whole = saved.bytes(DATA + file)
    saved.write(DATA + file, whole[:-7])
    fell_back(saved, make, f"step 40: {file} is truncated: {len(whole) - 7} of {len(whole)} bytes")


@pytest.mark.parametrize("file", ["shard-00000.safetensors", "rank-00000.safetensors", "index.json"])
@pytest.mark.parametrize("position", [0, 9, -1])
def test_byte_flipped(saved: Place, make: Make, file: str, position: int) -> None:
    data = bytearray(saved.bytes(DATA + file))
    data[position] ^= 1
    saved.write(DATA + file, bytes(data))
    fell_back(saved, make, f"step 40: {file} has changed since it was written")


def test_too_long(saved: Place, make: Make) -> None:
    saved.write(DATA + "index.json", saved.bytes(DATA + "index.json") + b"\n")
    fell_back(saved, make, "index.json is too long")


def test_file_gone(saved: Place, make: Make) -> None:
    saved.delete(DATA + "shard-00000.safetensors")
    fell_back(saved, make, "step 40: shard-00000.safetensors is missing")


@pytest.mark.parametrize("garbage", [b"", b"\x80\x04\x95", b"[]", b'{"format": 1}', b'{"format": "1"}'])
def test_marker_garbage(saved: Place, make: Make, garbage: bytes) -> None:
    saved.write(MARKER, garbage)
    fell_back(saved, make, "step 40: its marker is damaged")


def test_marker_of_another_checkpoint(saved: Place, make: Make) -> None:
    saved.write(MARKER, saved.bytes("markers/000001-000-0000000030.json"))
    fell_back(saved, make, "step 40: its marker is that of another checkpoint")


def test_a_newer_format_asks_for_an_upgrade(saved: Place, make: Make) -> None:
    saved.write(MARKER, b'{"format": 2, "whatever": "comes"}')
    with pytest.raises(ConfigurationError, match=r"format 2; this everstep reads up to format 1\. Upgrade everstep"):
        make(saved).open()
    assert MARKER in saved.listing("markers/")


def _signed(place: Place, file: str, data: bytes) -> None:
    """Replace a file and vouch for it, as its writer would."""
    import hashlib
    from dataclasses import replace

    marker = codec.loads(Marker, place.bytes(MARKER))
    mine = StoredFile(file, len(data), hashlib.sha256(data).hexdigest())
    others = tuple(f for f in marker.files if f.name != file)
    place.write(DATA + file, data)
    place.write(MARKER, codec.dumps(replace(marker, files=(*others, mine))))


@pytest.mark.parametrize(
    "index", [b"", b"garbage", b"[]", b'{"tensors": {}}', b'{"tree": {"$tensor": "a"}, "tensors": {}}']
)
def test_index_garbage(saved: Place, make: Make, index: bytes) -> None:
    _signed(saved, "index.json", index)
    fell_back(saved, make, "step 40: ")


def test_index_that_names_what_is_not_there(saved: Place, make: Make) -> None:
    index = json.loads(saved.bytes(DATA + "index.json"))
    next(iter(index["tensors"].values()))["pieces"][0][0] = "../../owner.json"
    _signed(saved, "index.json", json.dumps(index).encode())
    fell_back(saved, make, "step 40: ../../owner.json is not among its files")


class Explosive:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: str) -> None:
        self.path = path


@pytest.mark.parametrize("vouched", [False, True])
def test_a_planted_pickle_is_never_executed(saved: Place, make: Make, tmp_path: Path, vouched: bool) -> None:
    import pickle

    trap = tmp_path / "executed"
    bomb = pickle.dumps(Explosive(str(trap)))
    pickle.loads(pickle.dumps(Explosive(str(tmp_path / "works"))))
    assert (tmp_path / "works").exists()
    for file in ("index.json", "shard-00000.safetensors", "rank-00000.safetensors"):
        if vouched:
            _signed(saved, file, bomb)
        else:
            saved.write(DATA + file, bomb)
    saved.write("data/.metadata", bomb)
    saved.write(DATA + ".metadata", bomb)
    saved.write(DATA + "__0_0.distcp", bomb)
    saved.write("markers/000009-000-0000000099.json", bomb)
    saved.write("markers/x.pkl", bomb)
    fell_back(saved, make, "step 40: ")
    assert not trap.exists()


def test_when_nothing_is_usable_the_run_does_not_start_over(saved: Place, make: Make) -> None:
    for step in (30, 40):
        saved.write(f"data/000001-000-00000000{step}/index.json", b"")
    with pytest.raises(StorageRefusedError, match=r"none of the checkpoints .* step 40: .* step 30: .*resume to never"):
        make(saved).open()


def test_the_good_one_outlives_the_damaged(saved: Place, make: Make) -> None:
    """The damaged one does not count among those that are kept."""
    saved.write(DATA + "index.json", b"")
    checkpointer = make(saved, keep=2)
    checkpointer.open()
    checkpointer.save(0, 41, state(41), None, wait=True)
    checkpointer.close()
    assert saved.listing("markers/") == ["markers/000001-000-0000000030.json", "markers/000002-000-0000000041.json"]


def test_what_needs_a_damaged_one_is_of_no_use_either(saved: Place, make: Make) -> None:
    checkpointer = make(saved, keep=5)
    checkpointer.open()
    end = checkpointer.save(1, 40, state(40), {"own": 40}, wait=True, keep_forever=True)
    checkpointer.save(2, 40, {"calls": [end]}, {"own": 40}, wait=True)
    checkpointer.close()

    def needs(shared: dict[str, list[str]]) -> list[str]:
        return shared.get("calls", [])

    assert make(saved).open(needs).shared == {"calls": [end]}  # type: ignore[union-attr]
    saved.write(f"data/{end}/index.json", b"{}")
    restored = make(saved).open(needs)
    assert restored is not None
    assert (restored.call, restored.step) == (0, 40)
    assert "step 40 needs what is damaged: step 40: index.json is" in restored.info.note


def test_a_note_on_many_of_them_stays_readable(saved: Place, make: Make) -> None:
    for step in range(41, 441):
        saved.write(f"data/000001-000-{step:010d}/index.json", b"{}")
    restored = make(saved).open()
    assert restored is not None
    assert len(restored.info.note) < 1_000
    assert "391 more like this; fell back to step 40" in restored.info.note
