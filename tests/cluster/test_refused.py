"""What cannot work says why, in the status, and soon.

Manifests that the API server itself refuses are in tests/api/objects.py; test_objects.py there asks a real one.
"""

from collections.abc import Callable

import pytest
import yaml

from tests.cluster import store
from tests.cluster.kube import KubectlFailed, Object, apply, kubectl, until
from tests.cluster.runs import NAMESPACE, QUOTA, SESSION, Run, run, tiny

pytestmark = pytest.mark.cluster

Start = Callable[[Object], Run]


def test_a_bad_image_fails_fast_and_says_so(start: Start) -> None:
    """The name alone is bad: what a registry that nobody reaches would say, no test can know."""
    manifest = tiny("bad-image", "--steps", 5)
    manifest["spec"]["trainer"]["image"] = "registry.invalid/Nobody/Nothing:1"
    status = start(manifest).phase("Failed", seconds=120)
    assert status["reason"] == "ImagePull"
    assert "registry.invalid/Nobody/Nothing:1" in status["message"]


def test_a_registry_out_of_reach_is_waited_for_until_the_startup_deadline(start: Start) -> None:
    """A node without DNS, or without a way out, may have them in a minute."""
    manifest = tiny("no-registry", "--steps", 5, failurePolicy={"startup": {"deadlineSeconds": 50}})
    manifest["spec"]["trainer"]["image"] = "192.0.2.1:5000/nobody/nothing:1"  # an address that belongs to nobody
    status = start(manifest).phase("Failed", seconds=120)
    assert status["reason"] == "StartupDeadlineExceeded"
    assert "ImagePull" in status["message"]
    assert "192.0.2.1:5000/nobody/nothing:1" in status["message"]


def test_a_secret_that_is_not_there_fails_fast_and_is_named(start: Start) -> None:
    manifest = tiny("no-secret", "--steps", 5)
    manifest["spec"]["checkpoint"]["credentialsSecret"] = "nobody-made-this"
    status = start(manifest).phase("Failed", seconds=120)
    assert "nobody-made-this" in status["message"]


def test_a_volume_that_cannot_be_mounted_fails_fast_in_the_words_of_the_kubelet(start: Start) -> None:
    """Its pod says ContainerCreating for ever; only Events tell."""
    manifest = tiny("no-volume", "--steps", 5)
    volume = {"name": "extra", "secret": {"secretName": "nobody-made-this-either"}}
    mount = {"name": "trainer", "volumeMounts": [{"name": "extra", "mountPath": "/extra"}]}
    manifest["spec"]["podTemplate"] = {"spec": {"volumes": [volume], "containers": [mount]}}
    status = start(manifest).phase("Failed", seconds=120)
    assert status["reason"] == "Config"
    assert 'secret "nobody-made-this-either" not found' in status["message"]


def test_wrong_credentials_end_the_run_and_are_told(start: Start) -> None:
    """Nothing can be told before the first access to the store; from then on the store's refusal is in the status."""
    name = f"wrong-{SESSION}"
    keys = {"AWS_ACCESS_KEY_ID": store.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": "a wrong one"}
    metadata = {"name": name, "namespace": NAMESPACE}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys})
    manifest = tiny("wrong-keys", "--steps", 5, failurePolicy={"backoff": {"initialSeconds": 0}})
    manifest["spec"]["checkpoint"]["credentialsSecret"] = name
    status = start(manifest).phase("Failed", seconds=120)
    assert status["reason"] == "Storage"
    assert "403" in status["message"]


def test_unschedulable_is_pending_with_the_words_of_the_scheduler(start: Start) -> None:
    manifest = tiny("too-big", "--steps", 5)
    manifest["spec"]["trainer"]["resources"] = {"requests": {"cpu": "4000"}}
    waiting = start(manifest)
    until("the scheduler's words are in the status", lambda: "Insufficient cpu" in waiting.status.get("message", ""))
    status = waiting.status
    assert status["phase"] == "Pending"
    assert status["reason"] == "Unschedulable"


def test_the_startup_deadline_ends_what_never_starts(start: Start) -> None:
    manifest = tiny("never-starts", "--steps", 5, failurePolicy={"startup": {"deadlineSeconds": 5}})
    manifest["spec"]["trainer"]["resources"] = {"requests": {"cpu": "4000"}}
    status = start(manifest).phase("Failed", seconds=60)
    assert "Insufficient cpu" in status["message"]


def test_a_quota_is_told_and_waited_for(start: Start) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": QUOTA},
        "spec": {"hard": {"pods": "0"}},
    }
    apply(quota)
    try:
        until("the quota is in force", lambda: "pods" in kubectl("get", "quota", "none", "-n", QUOTA))
        held = start(tiny("quota", "--steps", 5, namespace=QUOTA))
        until("the quota is in the status", lambda: "exceeded quota" in held.status.get("message", ""))
        assert held.status["phase"] == "Pending"
    finally:
        kubectl("delete", "quota", "none", "-n", QUOTA)
    assert held.phase("Succeeded", seconds=120)["restarts"]["total"] == 0


def test_a_script_that_always_fails_ends_the_run_with_its_last_words(start: Start) -> None:
    failing = start(tiny("fails", "--steps", 20, "--raise-at", 3, failurePolicy={"backoff": {"initialSeconds": 0}}))
    status = failing.phase("Failed", seconds=120)
    assert status["reason"] == "UserException"
    last = status["attempts"][-1]
    assert "step 3 is too much" in last["message"]
    assert last["rank"] == 0
    assert last["node"] == 0
    assert last["exitCode"] == 1
    assert last["nodeName"]
    assert any("begins at step 0" in line for line in last["lastLines"])


def test_a_command_that_is_not_there_ends_the_run_at_once(start: Start) -> None:
    over = start(run("no-command", {"command": ["no-such-program"]}))
    status = over.phase("Failed")
    assert status["reason"] == "CommandNotFound"
    assert status["restarts"]["total"] == 0
    for mended in ({"trainer": {"command": ["true"]}}, {"suspend": True}):
        with pytest.raises(KubectlFailed, match="the run is over and does not begin again: delete it"):
            over.patch(**mended)


def test_a_pod_template_that_the_api_server_refuses_is_told(start: Start) -> None:
    manifest = tiny("bad-template", "--steps", 5)
    manifest["spec"]["podTemplate"] = {"spec": {"dnsPolicy": "Whatever"}}
    refused = start(manifest)
    until("the refusal is in the status", lambda: "Whatever" in refused.status.get("message", ""))


def test_a_misspelt_field_of_the_pod_template_is_told(start: Start) -> None:
    held = start(tiny("misspelt", "--steps", 5, podTemplate={"spec": {"schedulerNam": "mine"}}))
    until("the field is in the status", lambda: 'unknown field "spec.schedulerNam"' in held.status.get("message", ""))


def test_changes_of_a_running_run_are_refused_with_the_way_out(start: Start) -> None:
    running = start(tiny("fixed", "--steps", 3000, "--pause", 0.1))
    running.phase("Starting", "Running")
    with pytest.raises(KubectlFailed, match="suspend"):
        running.patch(trainer={"command": ["python", "other.py"]})
    with pytest.raises(KubectlFailed, match="elasticPolicy"):
        kubectl("scale", f"trainingrun/{running.name}", "-n", running.namespace, "--replicas=3")


def test_a_stranger_is_refused_by_the_coordinator(start: Start) -> None:
    """From another namespace nothing comes through; from the run's own network no word without its token is taken."""
    multi = start(tiny("stranger", "--steps", 3000, "--pause", 0.1, nodes=2))
    multi.reaches(2)
    url = f"http://{{}}.{multi.namespace}.svc:8321/v1/sync"
    service = next(
        item["metadata"]["name"]
        for item in yaml.safe_load(kubectl("get", "services", "-n", multi.namespace, "-o", "yaml"))["items"]
        if item["metadata"]["name"].startswith(multi.name) and item["metadata"]["name"].endswith("coordinator")
    )
    ask = f"""
import urllib.request, urllib.error
request = urllib.request.Request({url.format(service)!r}, data=b"{{}}", headers={{"Authorization": "Bearer wrong"}})
try:
    print("answered", urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as error:
    print("refused", error.code)
except OSError as error:
    print("unreachable", error)
"""
    assert store.python(ask).startswith("unreachable")
    assert multi.execute(multi.pod(0), ask).startswith("refused 401")
