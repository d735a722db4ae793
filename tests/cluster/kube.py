"""kubectl, as the tests use it: what a user types, with waits that end in a sentence and a picture of the cluster."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any, TypeVar

import yaml

Object = dict[str, Any]
T = TypeVar("T")


class KubectlFailed(Exception):
    """kubectl ended with another status than 0; the message is what it wrote to stderr."""


def kubectl(*arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
    """What kubectl prints.

    Raises:
        KubectlFailed: with what it wrote to stderr.
    """
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise KubectlFailed(done.stderr.strip() or f"status {done.returncode} of kubectl {' '.join(arguments)}")
    return done.stdout


def apply(*objects: Object, namespace: str | None = None, arguments: tuple[str, ...] = ()) -> None:
    where = ("--namespace", namespace) if namespace else ()
    kubectl("apply", "-f", "-", *where, *arguments, stdin=yaml.safe_dump_all(objects))


def get(kind: str, name: str, namespace: str | None = None) -> Object | None:
    """The object; None if it is not there."""
    where = ("--namespace", namespace) if namespace else ()
    text = kubectl("get", kind, name, *where, "-o", "json", "--ignore-not-found")
    found: Object | None = json.loads(text) if text.strip() else None
    return found


def listed(kind: str, namespace: str, selector: str = "") -> list[Object]:
    items: list[Object] = json.loads(kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))["items"]
    return items


def until(what: str, look: Callable[[], T | None], seconds: float = 60, every: float = 0.5) -> T:
    """The first true value of `look`. The API server may be away in between.

    Raises:
        AssertionError: it did not come within so many seconds.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            last = look()
            if last:
                return last
        except (KubectlFailed, subprocess.TimeoutExpired) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what} (last seen: {last})")
        time.sleep(every)


@contextmanager
def watching(kind: str, name: str, namespace: str) -> Iterator[Callable[[], list[Object]]]:
    """A function that gives every state that the object was in from now on, oldest first."""
    command = ["kubectl", "get", kind, name, "-n", namespace, "--watch", "-o", "json"]
    with TemporaryFile() as said, subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL) as process:

        def states() -> list[Object]:
            file = said.fileno()  # its position is kubectl's
            text = os.pread(file, os.fstat(file).st_size, 0).decode(errors="ignore").lstrip()
            found = []
            while text:
                try:
                    state, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # half written
                found.append(state)
                text = text[end:].lstrip()
            return found

        try:
            until("the watch has begun", states, 30)
            yield states
        finally:
            process.terminate()
