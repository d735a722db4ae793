"""The embedded S3 server: a real one, started and stopped."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError
from obstore.store import S3Store

from everstep_operator.cluster import shim
from everstep_operator.cluster.port import ClusterError
from everstep_operator.cluster.s3 import CREDENTIALS, EmbeddedS3, is_wanted, serve
from everstep_operator.cluster.state import Held, StateFolder


def store(environment: dict[str, str], **changes: str) -> S3Store:
    """A bucket that nobody has made."""
    env = environment | changes
    return S3Store(
        "everstep",
        prefix="digits",
        endpoint=env["AWS_ENDPOINT_URL"],
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        client_options={"allow_http": env["AWS_ALLOW_HTTP"] == "true"},
    )


def listening(pid: int) -> set[str]:
    """Addresses on which a process takes TCP connections, as hexadecimal text."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        inodes |= set(re.findall(r"socket:\[(\d+)\]", target))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def test_it_serves_keeps_and_protects(tmp_path: Path) -> None:
    with serve(tmp_path) as env:
        bucket = store(env)
        bucket.put("a", b"first")
        bucket.put("markers/1", b"once", mode="create")
        with pytest.raises(AlreadyExistsError):
            bucket.put("markers/1", b"twice", mode="create")
        with pytest.raises(PermissionDeniedError):
            store(env, AWS_SECRET_ACCESS_KEY="wrong").get("a")
        main = shim.read(str(tmp_path / "s3" / "server" / "process.json"))
        assert main is not None
        assert listening(int(main["pid"])) == {"0100007F"}, "127.0.0.1 and nothing else"  # type: ignore[call-overload]
        with pytest.raises(Held):
            StateFolder(tmp_path).take()
    assert not shim.alive(main)
    ports = set(re.findall(r'port(?:\.grpc)?": (\d+)', (tmp_path / "s3" / "server.json").read_text()))
    assert not [f for f in Path("/tmp").glob("seaweedfs-*.sock") if f.stem.rsplit("-", 1)[1] in ports]

    with serve(tmp_path) as env:  # other ports, the same data
        assert bytes(store(env).get("a").bytes()) == b"first"
        with pytest.raises(AlreadyExistsError):
            store(env).put("markers/1", b"twice", mode="create")


def test_a_server_that_died_is_started_again_at_the_same_address(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.take()
    server = EmbeddedS3(state, "s3://everstep/digits")
    assert server.keep(may_move=True)
    wait_until_up(server)
    env = server.env()
    assert list(store(env).list()) == [], "the bucket is there, so an empty listing is no missing bucket"
    store(env).put("a", b"first")
    assert not server.keep()
    main = shim.read(str(tmp_path / "s3" / "server" / "process.json"))
    assert main is not None
    os.kill(int(main["pid"]), 9)  # type: ignore[call-overload]
    while not server.process.state().finished:
        time.sleep(0.02)
    with pytest.raises(ClusterError, match="ended"):
        server.is_up()
    assert server.keep()
    wait_until_up(server)
    assert server.env() == env
    assert bytes(store(env).get("a").bytes()) == b"first"
    server.stop()
    while not server.is_stopped():
        time.sleep(0.02)
    state.release()


def wait_until_up(server: EmbeddedS3) -> None:
    while not server.is_up():
        time.sleep(0.02)


def test_nobody_there_it_ends_itself(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from everstep_operator.cluster.s3 import EmbeddedS3
from everstep_operator.cluster.state import StateFolder
state = StateFolder(Path(sys.argv[1]))
state.take()
server = EmbeddedS3(state, lease_seconds=1)
server.keep(may_move=True)
while not server.is_up(): pass
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    server = EmbeddedS3(StateFolder(tmp_path))
    while not server.process.state().finished:
        time.sleep(0.05)
    assert server.process.state().by_lease


def test_credentials_differ_from_run_to_run_and_are_secret(tmp_path: Path) -> None:
    first, second = (EmbeddedS3(StateFolder(tmp_path / name)) for name in ("a", "b"))
    assert first.env()["AWS_SECRET_ACCESS_KEY"] != second.env()["AWS_SECRET_ACCESS_KEY"]
    assert first.env() == first.env()
    assert ((tmp_path / "a" / "s3" / "server.json").stat().st_mode & 0o077) == 0


@pytest.mark.parametrize("name", CREDENTIALS)
def test_whoever_names_a_store_gets_none(name: str) -> None:
    assert is_wanted("s3://bucket/prefix", None, {}, {})
    assert not is_wanted("s3://bucket/prefix", None, {name: "x"}, {})
    assert not is_wanted("s3://bucket/prefix", None, {}, {name: "x"})


def test_other_stores_need_none() -> None:
    assert not is_wanted("s3://bucket/prefix", "http://minio:9000", {})
    assert not is_wanted("file:///tmp/x", None, {})
    assert not is_wanted(None, None, {})
