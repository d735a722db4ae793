"""The Secret with the run's token. Created once, never read."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.metadata import metadata, run_labels
from everstep_operator.cluster.render.names import TOKEN_KEY, token_secret_name


def token_secret(run: TrainingRun, token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(run, token_secret_name(run), run_labels(run)),
        "type": "Opaque",
        "immutable": True,
        "stringData": {TOKEN_KEY: token},
    }
