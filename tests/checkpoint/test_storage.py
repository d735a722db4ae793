"""Each storage does what the port says. The same tests for local files, a real S3 server and fsspec."""

import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everstep.checkpoint import object_store
from everstep.checkpoint.storage import CHUNK_BYTES, Body, Entry, Storage, open_storage, read
from everstep.errors import ConfigurationError


@pytest.fixture(params=["file", "s3", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage(f"file://{tmp_path}/deep/folder")
    if request.param == "memory":
        return open_storage(f"memory://{uuid.uuid4().hex}/prefix")
    return open_storage(f"s3://tests/{uuid.uuid4().hex}", request.getfixturevalue("s3_environ"))


def test_put_get_list_delete(storage: Storage) -> None:
    storage.put("data/a/x", Body.of(b"one"))
    storage.put("data/a/x", Body.of(b"two!"))
    storage.put("data/ab/y", Body(3, lambda: (b"o", memoryview(b"ne"))))
    assert read(storage, "data/a/x") == b"two!"
    assert read(storage, "data/ab/y") == b"one"
    assert sorted(storage.list("data/"), key=lambda e: e.key) == [Entry("data/a/x", 4), Entry("data/ab/y", 3)]
    assert storage.list("data/a/") == [Entry("data/a/x", 4)]
    assert storage.list("nothing/") == []
    storage.delete(["data/a/x", "data/a/x", "never/was"])
    assert storage.list("data/") == [Entry("data/ab/y", 3)]
    with pytest.raises(FileNotFoundError):
        read(storage, "data/a/x")


def test_c06_create_only_has_one_winner(storage: Storage) -> None:
    storage.put("markers/1", Body.of(b"first"), create_only=True)
    with pytest.raises(FileExistsError):
        storage.put("markers/1", Body.of(b"second"), create_only=True)
    assert read(storage, "markers/1") == b"first"
    assert [entry.key for entry in storage.list("markers/")] == ["markers/1"]


def test_empty_and_large_objects(storage: Storage) -> None:
    storage.put("data/empty", Body(0, lambda: ()))
    assert read(storage, "data/empty") == b""
    piece = bytes(range(256)) * (CHUNK_BYTES // 256)
    count = object_store._SINGLE_PUT_BYTES // CHUNK_BYTES + 1  # S3 takes it in parts
    storage.put("data/large", Body(count * len(piece), lambda: (piece for _ in range(count))))
    assert sorted(entry.size for entry in storage.list("data/")) == [0, count * len(piece)]
    assert read(storage, "data/large") == piece * count


def test_c06_a_large_object_is_never_whole_in_memory(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store has four parts under way and fills a fifth."""
    monkeypatch.setattr(object_store, "_SINGLE_PUT_BYTES", 5 * 2**20)  # the least that S3 takes as a part
    made: list[weakref.ref[np.ndarray]] = []
    size, count, most = 2**20, 60, 0

    def pieces() -> Iterator[memoryview]:
        nonlocal most
        for _ in range(count):
            piece = np.zeros(size, np.uint8)
            made.append(weakref.ref(piece))
            most = max(most, sum(one() is not None for one in made))
            yield memoryview(piece)

    storage.put("data/large", Body(count * size, pieces))
    assert [entry.size for entry in storage.list("data/")] == [count * size]
    assert most <= 30, f"of {count}"


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}")

    def broken():  # type: ignore[no-untyped-def]
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.put("data/a", Body(8, broken))
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("/some/folder", "has no scheme; write file:///"),
        ("file://host/folder", "three slashes"),
        ("file:relative", "three slashes"),
        ("s3:///prefix", "names no bucket"),
        ("nonsense://x/y", "nonsense"),
    ],
)
def test_wrong_uris_are_explained(uri: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        open_storage(uri)


def test_ca_bundle_that_is_not_there_is_named() -> None:
    storage = open_storage("s3://bucket/x", {"AWS_CA_BUNDLE": "/no/such.pem", "AWS_REGION": "us-east-1"})
    with pytest.raises(ConfigurationError, match=r"/no/such\.pem"):
        storage.list("data/")
