"""On which nodes a pod may run, and on which it should rather not."""

from collections.abc import Iterable
from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.cuda import CudaPool
from everstep_operator.cluster.render.metadata import pods_of
from everstep_operator.cluster.render.pool import Pool
from everstep_operator.cluster.render.tpu import ACCELERATOR_LABEL, TpuPool
from everstep_protocol import labels

#: Labels that say "here are accelerators": of NVIDIA's feature discovery, of GKE, of EKS.
ACCELERATOR_LABELS = (
    "nvidia.com/gpu.present",
    "cloud.google.com/gke-accelerator",
    ACCELERATOR_LABEL,
    "k8s.amazonaws.com/accelerator",
)
#: Taints by which Kubernetes evicts the pods of a node whose kubelet it does not hear.
_SILENT_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pool_of(run: TrainingRun) -> Pool:
    return {"cpu": Pool, "cuda": CudaPool, "tpu": TpuPool}[run.spec.accelerator.type](run)


def place_worker(body: dict[str, Any], pool: Pool) -> None:
    """Write it into a pod's spec."""
    if selector := pool.node_selector():
        body["nodeSelector"] = selector
    if tolerations := pool.tolerations():
        body["tolerations"] = tolerations


def place_coordinator(body: dict[str, Any], run: TrainingRun) -> None:
    """Away from accelerators, and from the workers whose death it has to survive; but there may be no other node.

    So it tolerates what workers do: where every node has a taint, one of theirs is its last resort.
    """
    if tolerations := pool_of(run).tolerations():
        body["tolerations"] = tolerations
    no_accelerator = [{"key": label, "operator": "DoesNotExist"} for label in ACCELERATOR_LABELS]
    node_affinity: dict[str, Any] = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": no_accelerator}}
        ]
    }
    workers = {
        "labelSelector": {"matchLabels": pods_of(run, labels.WORKER)},
        "topologyKey": "kubernetes.io/hostname",
    }
    body["affinity"] = {
        "nodeAffinity": node_affinity,
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "podAffinityTerm": workers}]
        },
    }


def keep_together(body: dict[str, Any], ours: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A pod's spec that also has these terms of podAffinity and podAntiAffinity, each of which has to hold."""
    affinity = dict(body.get("affinity") or {})
    for kind, terms in ours.items():
        theirs = affinity.get(kind) or {}
        affinity[kind] = {**theirs, REQUIRED: [*(theirs.get(REQUIRED) or []), *terms]}
    return {**body, "affinity": affinity} if ours else body


def let_stay(body: dict[str, Any]) -> dict[str, Any]:
    """A pod's spec that is not evicted because its node is silent, unless it says itself for how long it stays.

    After an outage of the control plane healthy nodes are NotReady for a while, and whoever trains there trains on.
    Which nodes are lost, the operator decides, who asks the coordinator as well.
    """
    tolerations = list(body.get("tolerations") or [])
    told = {taint.get("key") for taint in tolerations if taint.get("effect") in (None, "", "NoExecute")}
    stays = [
        {"key": key, "operator": "Exists", "effect": "NoExecute"} for key in _SILENT_NODE if not {key, None} & told
    ]
    return {**body, "tolerations": [*tolerations, *stays]} if stays else body


def keep_off(body: dict[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """A pod's spec that also stays away from these nodes, wherever else it says that it may run.

    By the nodes' names, not by their hostname labels, which may be others. A field takes one value an entry.
    """
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    if not fields:
        return body
    affinity = body.get("affinity") or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get(REQUIRED) or {}
    # One of these terms has to hold, so each of them has to say it. An empty list of them would match nothing.
    terms = required.get("nodeSelectorTerms", [{}])
    apart = [{**term, "matchFields": [*(term.get("matchFields") or []), *fields]} for term in terms]
    node_affinity = {**node_affinity, REQUIRED: {**required, "nodeSelectorTerms": apart}}
    return {**body, "affinity": {**affinity, "nodeAffinity": node_affinity}}
