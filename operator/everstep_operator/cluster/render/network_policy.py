"""Who may open connections to a run's pods. Ingress only: what the pods themselves reach is the user's business."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.metadata import metadata, pods_of, run_labels
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.pods import prefix
from everstep_protocol import labels


def among_pods(run: TrainingRun) -> dict[str, Any]:
    """All ports among the pods of one run: gloo and NCCL take any, and the store that they meet in asks for no name."""
    return _policy(run, prefix(run), pods_of(run), {"from": [{"podSelector": {"matchLabels": pods_of(run)}}]})


def to_coordinator(run: TrainingRun, settings: RenderSettings) -> dict[str, Any]:
    """The coordinator's port, from the operator and from those who read metrics."""
    ingress: dict[str, Any] = {"ports": [{"port": "http"}]}
    if settings.operator_namespace is not None:
        ingress["from"] = [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
            for namespace in dict.fromkeys((settings.operator_namespace, *settings.monitoring_namespaces))
        ]
    return _policy(run, f"{prefix(run)}-coordinator", pods_of(run, labels.COORDINATOR), ingress)


def _policy(run: TrainingRun, name: str, selected: dict[str, str], ingress: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(run, name, run_labels(run)),
        "spec": {"podSelector": {"matchLabels": selected}, "policyTypes": ["Ingress"], "ingress": [ingress]},
    }
