"""What no restart can help: a sentence that says what is wrong and what to do, exit status 1, soon."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from everstep_operator.cluster.state import free_ports
from tests.demo.training import LINEAR, Training
from tests.run.session import EVERSTEP

Make = Callable[..., Training]
S3 = {"uri": "s3://bucket/linear", "every": {"steps": 5}}


def test_a_script_that_raises_at_step_3(training: Make) -> None:
    linear = training("--raise-at", "3", numProcPerNode=2)
    code, out = linear.run()
    assert code == 1
    assert "default/tiny Failed: UserException: gave up after 3 identical failures at step 3: " in out
    assert out.count("Traceback (most recent call last)") == 1, "once on the screen, not once per rank or try"
    assert out.count("\nValueError: step 3 is too much") == 1
    assert out.count("failed at step 3: UserException: ValueError: step 3 is too much") == 3
    assert linear.status["restarts"]["total"] == 2, "of the 10 that it had"
    assert linear.status["phase"] == "Failed"


def test_a_script_that_raises_under_everstep_launch(tmp_path: Path) -> None:
    command = [EVERSTEP, "launch", "--nproc-per-node", "2", "--max-restarts", "0", LINEAR, "--raise-at", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.count("\nValueError: step 3 is too much") == 1


def environment(endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "else", "AWS_REGION": "us-east-1"}
    return kept | keys | {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"} | more


def refused(linear: Training, env: dict[str, str], restarts: int) -> str:
    linear.start(env=env)
    code, out = linear.finish()
    assert code == 1, out
    assert "Traceback" not in out
    assert linear.status["restarts"]["total"] == restarts
    assert linear.pids() == set()
    return next(line for line in out.splitlines() if "default/tiny Failed: " in line)


def test_s3_that_cannot_be_reached(training: Make) -> None:
    (port,) = free_ports(1)
    sentence = refused(training(checkpoint=S3), environment(f"http://127.0.0.1:{port}"), restarts=2)
    assert "Storage: gave up after 3 identical failures" in sentence
    assert f"cannot write owner.json in s3://bucket/linear at http://127.0.0.1:{port}: " in sentence
    assert "Check endpoint and region (AWS_ENDPOINT_URL, AWS_REGION)" in sentence


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (
            403,
            "SignatureDoesNotMatch",
            "access denied (it answers 403 SignatureDoesNotMatch). Check the credentials (for s3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        ),
        (404, "NoSuchBucket", "there is no bucket 'bucket'; create it or correct the uri"),
    ],
    ids=["wrong-credentials", "no-bucket"],
)
def test_s3_that_refuses(training: Make, status: int, code: str, says: str) -> None:
    with refusing(status, code) as endpoint:
        sentence = refused(training(checkpoint=S3), environment(endpoint), restarts=0)
    assert "no restart can help" in sentence
    assert says in sentence


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """An S3 server that says no to everything, in S3's words. Yields its endpoint."""

    class No(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), No) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
