"""trainer.code: a folder that the image does not hold, and a worker can write to.

Small files come in a ConfigMap, each mounted by itself, so that the folder around them is an ordinary one. An archive
is fetched and unpacked by an init container, from the trainer's image and with its credentials.
"""

import hashlib
import json
from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.metadata import metadata, run_labels
from everstep_operator.plan.pods import prefix

FOLDER = "/everstep/code"


def config_map(run: TrainingRun) -> dict[str, Any] | None:
    """The files; None where there are none. Another name for other files: an old pod keeps what it began with."""
    code = run.spec.trainer.code
    if code is None or not code.files:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(run, _name(run), run_labels(run)),
        "immutable": True,
        "data": {_key(index, file.path): file.content for index, file in enumerate(code.files)},
    }


def mount_code(run: TrainingRun, container: dict[str, Any], body: dict[str, Any]) -> None:
    """Write it into the trainer's container and its pod."""
    code = run.spec.trainer.code
    if code is None:
        return
    body["volumes"].append({"name": "code", "emptyDir": {}})
    container["volumeMounts"].append({"name": "code", "mountPath": FOLDER})
    if code.files:
        body["volumes"].append({"name": "code-files", "configMap": {"name": _name(run)}})
        container["volumeMounts"] += [
            {
                "name": "code-files",
                "mountPath": f"{FOLDER}/{file.path}",
                "subPath": _key(index, file.path),
                "readOnly": True,
            }
            for index, file in enumerate(code.files)
        ]


def working_dir(run: TrainingRun) -> str | None:
    """Where the command starts; None: wherever the image says."""
    trainer = run.spec.trainer
    if trainer.code is None or (trainer.working_dir or "").startswith("/"):
        return trainer.working_dir
    return f"{FOLDER}/{trainer.working_dir}" if trainer.working_dir else FOLDER


def fetch_arguments(run: TrainingRun) -> list[str] | None:
    """What `everstep` has to be told to fetch an archive; None where there is none."""
    code = run.spec.trainer.code
    return None if code is None or code.archive is None else ["fetch", code.archive, FOLDER]


def _name(run: TrainingRun) -> str:
    code = run.spec.trainer.code
    assert code is not None
    text = json.dumps([[file.path, file.content] for file in code.files])
    return f"{prefix(run)}-code-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _key(index: int, path: str) -> str:
    """Keys have no slashes."""
    return f"{index}-{path.replace('/', '_')}"
