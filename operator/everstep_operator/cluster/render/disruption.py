"""How many workers a drain may take at a time."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.metadata import metadata, pods_of, run_labels
from everstep_operator.plan.pods import prefix
from everstep_operator.plan.suspend import SUSPENDED
from everstep_protocol import labels


def disruption_budget(run: TrainingRun) -> dict[str, Any] | None:
    """None without elasticPolicy: where every node is needed, a budget would stop a drain for ever.

    One that was scaled down to its minimum keeps a budget, which lets one pod at a time save and move. A run that has
    been suspended may have had an elasticPolicy before. Then its budget is still there, and is told to protect nothing:
    so the operator needs no right to delete it.
    """
    if run.spec.elastic_policy is None and run.status.condition(SUSPENDED) is None:
        return None
    kept = 0 if run.spec.elastic_policy is None else min(run.spec.min_nodes, run.spec.num_nodes - 1)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(run, prefix(run), run_labels(run)),
        "spec": {
            "minAvailable": kept,
            "selector": {"matchLabels": pods_of(run, labels.WORKER)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a pod that does not run protects nobody
        },
    }
