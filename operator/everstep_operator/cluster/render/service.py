"""The run's Services: one finds the coordinator, one gives the workers names."""

from collections.abc import Iterable
from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.metadata import metadata, pods_of, run_labels
from everstep_operator.cluster.render.names import coordinator_service_name, workers_service_name
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import Pod
from everstep_protocol import labels


def coordinator_service(run: TrainingRun, settings: RenderSettings, coordinators: Iterable[Pod]) -> dict[str, Any]:
    """`coordinators`: pods that own the Service beside the run.

    When a run is deleted its pods save first, and agree on the step through the coordinator. An object is collected
    when all of its owners are gone, so the Service stays for as long as the coordinator does. Apply it with its pod
    once that has been created.
    """
    whole: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, coordinator_service_name(run), run_labels(run)),
        "spec": {
            "selector": pods_of(run, labels.COORDINATOR),
            "ports": [{"name": "http", "port": settings.coordinator_port, "targetPort": "http"}],
            "publishNotReadyAddresses": True,  # a terminating coordinator is still needed
        },
    }
    whole["metadata"]["ownerReferences"] += [
        {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid} for pod in coordinators
    ]
    return whole


def workers_service(run: TrainingRun) -> dict[str, Any]:
    """Headless: worker-0.<service>, worker-1.<service> … are the pods themselves."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, workers_service_name(run), run_labels(run)),
        "spec": {
            "clusterIP": "None",
            "selector": pods_of(run, labels.WORKER),
            "publishNotReadyAddresses": True,  # they look for each other before they are ready
        },
    }
