"""The operator's image, as the cluster has it."""

import os
from collections.abc import Callable

import pytest

from tests.cluster.conftest import SYSTEM
from tests.cluster.kube import Object, kubectl, listed
from tests.cluster.runs import Run, tiny

pytestmark = pytest.mark.cluster

MEGABYTE = 1_000_000

LOOK = """
import importlib.util, os
assert os.getuid() != 0, "root"
assert importlib.util.find_spec("torch") is None, "torch is in it"
try:
    open("/written", "w")
except OSError as error:
    print(error.strerror)
"""


def test_it_is_small(operator: None) -> None:
    """At most 250 MB."""
    name = os.environ["EVERSTEP_OPERATOR_IMAGE"]
    sizes = [
        image["sizeBytes"]
        for node in listed("nodes", "default")
        for image in node["status"].get("images", [])
        if any(known.removeprefix("docker.io/") == name for known in image["names"] or [])
    ]
    assert sizes, f"no node says that it has {name}"
    assert max(sizes) <= 250 * MEGABYTE


def test_the_operator_and_the_coordinators_run_without_root_and_cannot_write(
    start: Callable[[Object], Run],
) -> None:
    multi = start(tiny("look", "--steps", 3000, "--pause", 0.1, nodes=2))
    multi.reaches(2)
    (coordinator,) = multi.pods("coordinator")
    operators = listed("pods", SYSTEM, "app.kubernetes.io/component=operator")
    for pod in (coordinator, operators[0]):
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        said = kubectl("exec", "-i", name, "-n", namespace, "--", "python", "-", stdin=LOOK)
        assert said == "Read-only file system\n"
