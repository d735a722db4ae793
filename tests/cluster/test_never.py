"""What other operators were seen to do on this very kind of cluster, and what must be impossible here.

A lost worker that is never replaced, dead nodes and partitions are in test_faults.py, beside the other accidents.
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
import yaml

from everstep_protocol import labels
from tests.cluster.conftest import RELEASE, SYSTEM
from tests.cluster.faults import Faults, live_ranks
from tests.cluster.kube import Object, apply, kubectl, until, watching
from tests.cluster.runs import NAMESPACE, SESSION, Run, run, tiny

pytestmark = pytest.mark.cluster

Start = Callable[[Object], Run]

#: Hears neither a signal nor of the step at which all are to stop.
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    time.sleep(60)
"""


def others(run: Run, pod: Object) -> list[Object]:
    """Pods of the same place: those before it and those after it."""
    node = pod["metadata"]["labels"][labels.NODE]
    everyone = [p for p in run.pods() if p["metadata"]["labels"][labels.NODE] == node]
    return [p for p in everyone if p["metadata"]["uid"] != pod["metadata"]["uid"] and p["spec"].get("nodeName")]


def test_two_live_processes_of_one_rank_when_a_worker_ignores_sigterm(start: Start, faults: Faults) -> None:
    trainer = {"command": ["python", "deaf.py"], "code": {"files": [{"path": "deaf.py", "content": DEAF}]}}
    deaf = start(run(f"deaf-{SESSION}", trainer | {"terminationGracePeriodSeconds": 10}, nodes=2))
    pod = until("both workers run", lambda: deaf.pods()[1] if len(deaf.pods()) == 2 else None)
    until("the rank runs", lambda: live_ranks(faults, pod) == 1, 90)
    kubectl("delete", "pod", pod["metadata"]["name"], "-n", deaf.namespace, "--wait=false")

    def another_has_begun() -> bool:
        later = others(deaf, pod)
        begun = sum(live_ranks(faults, p) for p in later)
        # In this order: what has ended between the two looks is no second process.
        assert not begun or live_ranks(faults, pod) == 0, "its rank lives beside the one in its place"
        return bool(begun)

    until("another rank runs in its place", another_has_begun, 90)


def test_a_status_that_is_empty_or_says_suspended_after_a_resume(start: Start) -> None:
    """Through a fault, a suspension and a resume: whoever looks, whenever, is told where the run is."""
    seen = start(tiny("told", "--steps", 3000, "--pause", 0.1, nodes=2))
    before = seen.reaches(5)["progress"]["step"]
    with watching("trainingrun", seen.name, seen.namespace) as states:
        kubectl("delete", "pod", seen.pod(1)["metadata"]["name"], "-n", seen.namespace, "--force", "--grace-period=0")
        until("the accident is in the status", lambda: seen.status["phase"] != "Running")
        seen.phase("Running")
        seen.patch(suspend=True)
        seen.phase("Suspended")
        seen.patch(suspend=False)
        after = seen.phase("Running")
        told = [state["status"] for state in states()]
    assert after["resumedFrom"]["step"] >= before
    assert {status["phase"] for status in told} >= {"Running", "Restarting", "Suspended", "Starting"}
    for status in told:
        assert status["reason"]
        assert status["progress"]["step"] >= before
        assert status["worldSize"] == 2 or status["phase"] != "Running"
    phases = [status["phase"] for status in told]
    resumed = max(i for i, phase in enumerate(phases) if phase == "Suspended") + 1
    assert "Restarting" not in phases[resumed:]
    conditions = {condition["type"]: condition["status"] for condition in after["conditions"]}
    assert conditions.get("Suspended", "False") == "False"


def test_deletes_that_end_in_a_retry_limit(start: Start) -> None:
    """Somebody deletes pod after pod; each is replaced, and the budget of one restart is not touched."""
    patient = start(tiny("deleted", "--steps", 6000, "--pause", 0.1, nodes=2, failurePolicy={"maxRestarts": 1}))
    delays = []
    for _ in range(4):
        patient.reaches(patient.step + 5)
        pod, deleted = patient.pod(1), time.time()
        kubectl("delete", "pod", pod["metadata"]["name"], "-n", patient.namespace, "--wait=false")
        (*_, other) = until("another is in its place", lambda pod=pod: others(patient, pod))  # type: ignore[misc]
        delays.append(datetime.fromisoformat(other["metadata"]["creationTimestamp"]).timestamp() - deleted)
    assert max(delays) < 4 * max(delays[0], 3), "those that double their delay would be at eight times the first"
    status = patient.reaches(patient.step + 5)
    assert (status["phase"], status["restarts"]["total"]) == ("Running", 0)


#: The name of a webhook, and the label of the pods that it is asked about.
MARK = f"broken-{SESSION}"


@pytest.fixture
def webhook_that_is_down(the_store: None) -> Iterator[Callable[[], None]]:
    """From the call on, somebody's admission webhook for pods with a label is there, and nobody answers it."""
    webhook = {
        "name": "broken.everstep.test",
        "clientConfig": {"service": {"name": "nobody", "namespace": NAMESPACE}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        "objectSelector": {"matchLabels": {"everstep-test": MARK}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    yield lambda: apply(kind | {"metadata": {"name": MARK}, "webhooks": [webhook]})
    kubectl("delete", "validatingwebhookconfiguration", MARK, "--ignore-not-found")


def test_pods_that_wait_for_a_webhook_in_silence(start: Start, webhook_that_is_down: Callable[[], None]) -> None:
    webhook_that_is_down()
    template = {"metadata": {"labels": {"everstep-test": MARK}}}
    held = start(tiny("webhook", "--steps", 10, podTemplate=template))
    until("the webhook is named in the status", lambda: "broken.everstep.test" in held.status.get("message", ""))
    assert held.status["phase"] == "Pending"
    kubectl("delete", "validatingwebhookconfiguration", MARK)
    assert held.phase("Succeeded")["restarts"]["total"] == 0


def test_pods_that_cannot_be_replaced_while_a_webhook_is_down(
    start: Start, webhook_that_is_down: Callable[[], None]
) -> None:
    """Training that runs is told of what it lacks, and has it as soon as the webhook lets it."""
    template = {"metadata": {"labels": {"everstep-test": MARK}}}
    held = start(tiny("webhook-later", "--steps", 5000, "--pause", 0.1, nodes=2, podTemplate=template))
    held.reaches(5)
    webhook_that_is_down()
    kubectl("delete", "pod", held.pod(1)["metadata"]["name"], "-n", held.namespace, "--wait=false")
    until("the webhook is named in the status", lambda: "broken.everstep.test" in held.status.get("message", ""), 90)
    kubectl("delete", "validatingwebhookconfiguration", MARK)
    status = held.reaches(held.step + 20)
    assert (status["phase"], status["restarts"]["total"]) == ("Running", 0)


def test_a_webhook_of_our_own(helm: Callable[..., str]) -> None:
    """One that is away would hold back everybody's pods: the chart has none."""
    text = helm("get", "manifest", RELEASE, "-n", SYSTEM)
    kinds = {document["kind"] for document in yaml.safe_load_all(text) if document}
    assert "Deployment" in kinds
    assert not [kind for kind in kinds if "Webhook" in kind]
