"""Storage that fails: a sentence at the start, patience during training, an error at the end."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.storage import Body, Entry, open_storage
from everstep.errors import ConfigurationError, StorageError, StorageRefusedError
from everstep_operator.cluster.state import free_ports
from tests.checkpoint.conftest import RUN, Place, World, state

Make = Callable[..., Checkpointer]


class Shaky:
    """A storage that fails while it is told to."""

    def __init__(self, place: Place) -> None:
        self._storage = place.storage()
        self.uri = self._storage.uri
        self.broken: str | None = None  # keys that begin with this
        self.lose = False  # report a success that was none
        self.attempts = 0

    def _maybe(self, key: str) -> None:
        if self.broken is not None and key.startswith(self.broken):
            self.attempts += 1
            raise StorageError(f"cannot write {key}: the store is down")

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        self._maybe(key)
        if not (self.lose and key.endswith("index.json")):
            self._storage.put(key, body, create_only=create_only)

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        self._maybe(key)
        return self._storage.get(key)

    def list(self, prefix: str) -> list[Entry]:
        self._maybe(prefix)
        return self._storage.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self._storage.delete(keys)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def shaky(folder: Place) -> Shaky:
    return Shaky(folder)


@pytest.mark.parametrize("broken", ["data/", "markers/"])
def test_training_goes_on_while_the_store_is_down(shaky: Shaky, folder: Place, broken: str) -> None:
    changes: list[float | None] = []
    checkpointer = Checkpointer(shaky, run=RUN, on_change=lambda: changes.append(checkpointer.not_durable_since))
    checkpointer.open()
    checkpointer.save(0, 1, state(1), None, wait=True)
    shaky.broken = broken
    for step in (2, 3, 4):
        checkpointer.save(0, step, state(step), None)  # returns, and raises nothing
    until(lambda: checkpointer.not_durable_since)
    since = checkpointer.not_durable_since
    assert checkpointer.last_checkpoint is not None
    assert checkpointer.last_checkpoint.step == 1
    shaky.broken = None
    checkpointer.save(0, 5, state(5), None)
    checkpointer.wait()
    assert checkpointer.not_durable_since is None
    assert checkpointer.last_checkpoint.step == 5
    assert changes[-1] is None
    assert since in changes
    checkpointer.close()


def test_it_tries_again_by_itself(shaky: Shaky) -> None:
    checkpointer = Checkpointer(shaky, run=RUN)
    checkpointer.open()
    shaky.broken = "data/"
    checkpointer.save(0, 1, state(1), None)
    until(lambda: shaky.attempts >= 2)
    shaky.broken = None
    checkpointer.wait()
    assert checkpointer.last_checkpoint is not None
    checkpointer.close()


@pytest.mark.parametrize("broken", ["data/", "markers/"])
def test_at_the_end_it_gives_up_after_a_while_and_says_why(shaky: Shaky, broken: str) -> None:
    checkpointer = Checkpointer(shaky, run=RUN, retry_seconds=0.7)
    checkpointer.open()
    shaky.broken = broken
    with pytest.raises(StorageError, match=r"checkpoint of step 3 could not be saved: .*the store is down"):
        checkpointer.save(0, 3, state(3), None, wait=True)
    assert shaky.attempts >= 2
    shaky.broken = None
    checkpointer.save(0, 3, state(3), None, wait=True)  # the same step may be tried again
    assert checkpointer.last_checkpoint is not None
    checkpointer.close()


def test_one_rank_that_cannot_write_is_heard_of_by_all(folder: Place) -> None:
    shaky = Shaky(folder)
    store = torch.distributed.HashStore()
    with World(folder, 2) as world:
        world.members = [
            Checkpointer(place, rank=rank, world_size=2, store=store, run=RUN, retry_seconds=0.1)
            for rank, place in enumerate([folder.storage(), shaky])
        ]
        world.each(lambda member, rank: member.open())
        shaky.broken = "data/"
        for error in world.each(lambda member, rank: member.save(0, 1, state(1), None, wait=True)):
            assert isinstance(error, StorageError)
            assert "rank 1: cannot write data/" in str(error)
        assert all(member.not_durable_since for member in world.members)
        assert folder.listing("markers/") == []
        shaky.broken = None
        world.each(lambda member, rank: member.save(0, 2, state(2), None, wait=True))
        assert folder.listing("markers/") == ["markers/000001-000-0000000002.json"]


def test_a_file_that_the_store_lost_is_not_published(shaky: Shaky, folder: Place) -> None:
    checkpointer = Checkpointer(shaky, run=RUN, retry_seconds=0.1)
    checkpointer.open()
    shaky.lose = True
    with pytest.raises(StorageError, match=r"index\.json: \d+ bytes were written, but .* does not have it"):
        checkpointer.save(0, 1, state(1), None, wait=True)
    assert folder.listing("markers/") == []
    checkpointer.close()


def test_close_does_not_wait_for_a_store_that_is_down(shaky: Shaky) -> None:
    checkpointer = Checkpointer(shaky, run=RUN, retry_seconds=1e9)
    checkpointer.open()
    shaky.broken = "data/"
    checkpointer.save(0, 1, state(1), None)
    checkpointer.close()


# The start: a sentence that says what to check.


def test_unreachable(make: Make) -> None:
    (port,) = free_ports(1)
    environ = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    with pytest.raises(
        StorageError, match=rf"s3://bucket/run at http://127\.0\.0\.1:{port}.*Check endpoint and region"
    ):
        make(Place("s3://bucket/run", environ)).open()


def test_wrong_credentials(make: Make, s3_environ: dict[str, str]) -> None:
    for wrong in ({"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}):
        with pytest.raises(StorageRefusedError, match=r"s3://tests/x at http://127.*AWS_ACCESS_KEY_ID"):
            make(Place("s3://tests/x", {**s3_environ, **wrong})).open()


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The store's client is given none, and asks the machine for some: at this port, not at an address of the cloud."""

    def ask_at(port: int) -> None:
        for name in os.environ:
            if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{port}")
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{port}")
        monkeypatch.setenv("AZURE_MSI_ENDPOINT", f"http://127.0.0.1:{port}/metadata/identity/oauth2/token")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")

    return ask_at


_URIS = pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://bucket/run", "az://bucket/run"])


@_URIS
def test_no_credentials_at_all(make: Make, uri: str, no_credentials: Callable[[int], None]) -> None:
    with answering(_NoBucket) as port:
        no_credentials(port)
        with pytest.raises(StorageRefusedError) as said:
            make(Place(uri, {})).open()
    assert str(said.value).startswith(f"no credentials for {uri}: set ")
    assert "spec.checkpoint.credentialsSecret" in str(said.value)
    assert "spec.trainer.serviceAccountName" in str(said.value)


@_URIS
def test_who_gives_credentials_may_come_up_a_little_later(
    make: Make, uri: str, no_credentials: Callable[[int], None]
) -> None:
    """A node's metadata service: what waits for it is no mistake of the user, and is tried again."""
    no_credentials(*free_ports(1))
    with pytest.raises(StorageError, match=f"no credentials for {uri}: set ") as said:
        make(Place(uri, {})).open()
    assert not isinstance(said.value, StorageRefusedError)


class _NoBucket(BaseHTTPRequestHandler):
    """What S3 answers where there is no such bucket."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>No such bucket</Message></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_bucket_missing(make: Make, s3_environ: dict[str, str]) -> None:
    with answering(_NoBucket) as port:
        environ = {**s3_environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        with pytest.raises(StorageRefusedError, match=r"there is no bucket 'absent'; create it or correct the uri"):
            make(Place("s3://absent/x", environ)).open()


def test_no_space_left(folder: Place) -> None:
    def full() -> Iterator[bytes]:
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"no space left: free some"):
        folder.storage().put("data/a", Body(8, full))
    assert folder.listing() == []


def test_folder_that_cannot_be(folder: Place, make: Make) -> None:
    path = folder.uri.removeprefix("file://")
    with open(path, "w"):
        pass
    with pytest.raises(StorageError, match=r"cannot write .*Not a directory"):
        make(folder).open()


def test_nodes_that_do_not_share_the_folder_are_told(folder: Place) -> None:
    other = Place(folder.uri + "-of-another-node", {})
    store = torch.distributed.HashStore()
    with World(folder, 2) as world:
        world.members = [
            Checkpointer(place.storage(), rank=rank, world_size=2, store=store, run=RUN)
            for rank, place in enumerate([folder, other])
        ]
        for error in world.each(lambda member, rank: member.open()):
            assert isinstance(error, ConfigurationError)
            assert "rank 1 does not see what rank 0 writes there. All nodes have to see the same storage" in str(error)


def test_the_storage_of_a_uri_is_not_touched_before_open(s3_environ: dict[str, str]) -> None:
    """obstore's threads start with the first request: until then a process may fork."""
    before = threading.active_count()
    open_storage("s3://bucket/x", s3_environ)
    assert threading.active_count() == before


@pytest.mark.parametrize("before", [0, 1], ids=["from the first save on", "later"])
def test_a_state_that_differs_between_ranks_is_refused(folder: Place, before: int) -> None:
    with World(folder, 3) as world:
        world.each(lambda member, _: member.open())
        if before:
            world.each(lambda member, _: member.save(0, 1, state(1), None, wait=True))

        def save(member: Checkpointer, rank: int) -> Any:
            extra = {"logged": {"loss": torch.zeros(2)}} if rank == 0 else {}
            return member.save(0, 9, {**extra, **state(9)}, None, wait=True)

        for error in world.each(save):
            assert isinstance(error, ConfigurationError)
            assert "rank 0 has shared/logged/loss (float32 [2]) where ranks 1, 2 have shared/model" in str(error), error
        assert len(folder.listing("markers/")) == before


def test_whoever_waits_is_let_go_even_if_nobody_can_be_told_of_a_failure(folder: Place) -> None:
    def deaf() -> None:
        if storage.broken is not None:
            raise RuntimeError("nobody listens")

    storage = Shaky(folder)
    checkpointer = Checkpointer(storage, run=RUN, retry_seconds=0.0, on_change=deaf)
    checkpointer.open()
    storage.broken = "data/"
    for step in (1, 2):
        with pytest.raises(StorageError, match=f"step {step} could not be saved"):
            checkpointer.save(0, step, state(step), None, wait=True)
    storage.broken = None
    checkpointer.save(0, 3, state(3), None, wait=True)
    checkpointer.close()


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_on_a_real_server(s3_environ: dict[str, str], wrong: str) -> None:
    place = Place("s3://tests/wrong", {**s3_environ, wrong: "nonsense"})
    with pytest.raises(StorageRefusedError, match=r"access denied .*Check the credentials .*bucket 'tests'"):
        Checkpointer(place.storage(), run=RUN).open()
