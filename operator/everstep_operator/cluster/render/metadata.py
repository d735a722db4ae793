"""metadata of a run's objects: they belong to the run and go with it."""

from collections.abc import Mapping
from typing import Any

from everstep_operator.api.trainingrun import API_VERSION, KIND, TrainingRun
from everstep_protocol import labels


def metadata(run: TrainingRun, name: str, own_labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": run.metadata.namespace,
        "labels": {"app.kubernetes.io/managed-by": "everstep", **own_labels},
        "ownerReferences": [owner(run)],
    }


def owner(run: TrainingRun) -> dict[str, Any]:
    # Without blockOwnerDeletion: it would need the right to update finalizers of TrainingRuns.
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "controller": True,
    }


def run_labels(run: TrainingRun) -> dict[str, str]:
    return {labels.RUN: run.metadata.name, labels.RUN_UID: run.metadata.uid}


def pods_of(run: TrainingRun, role: str | None = None) -> dict[str, str]:
    """matchLabels of this very run's pods."""
    return {labels.RUN_UID: run.metadata.uid} | ({labels.ROLE: role} if role else {})
