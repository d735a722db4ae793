"""How a container reaches the checkpoint store."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.port import Refused

_FOLDER = "/everstep/ca"
_FILE = f"{_FOLDER}/ca.crt"


def open_store(run: TrainingRun, container: dict[str, Any], body: dict[str, Any]) -> None:
    """Write credentials and certificates into a container and its pod."""
    checkpoint = run.spec.checkpoint
    if checkpoint is None:
        return
    if checkpoint.credentials_secret is not None:
        container.setdefault("envFrom", []).append({"secretRef": {"name": checkpoint.credentials_secret}})
    if checkpoint.ca is None:
        return
    # Read by the runtime, and by what else speaks to the store in the user's script.
    container["env"].append({"name": "AWS_CA_BUNDLE", "value": _FILE})
    container["volumeMounts"].append({"name": "ca", "mountPath": _FOLDER, "readOnly": True})
    if all(volume["name"] != "ca" for volume in body["volumes"]):
        source = checkpoint.ca.config_map or checkpoint.ca.secret
        assert source is not None  # a rule of the API
        items = [{"key": source.key, "path": "ca.crt"}]
        volume: dict[str, Any] = (
            {"configMap": {"name": source.name, "items": items}}
            if checkpoint.ca.config_map is not None
            else {"secret": {"secretName": source.name, "items": items}}
        )
        body["volumes"].append({"name": "ca", **volume})


def check_folder(run: TrainingRun, container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    """Raises Refused: checkpoints would lie in the pod itself, and be gone with it."""
    checkpoint = run.spec.checkpoint
    if checkpoint is None or not checkpoint.uri.startswith("file://"):
        return
    folder = checkpoint.uri.removeprefix("file://")
    mounts = [m for m in container["volumeMounts"] if f"{folder}/".startswith(f"{m['mountPath'].rstrip('/')}/")]
    nearest = max(mounts, key=lambda mount: len(mount["mountPath"]), default={"name": None})
    if not any(volume.get("name") == nearest.get("name") and "emptyDir" not in volume for volume in volumes):
        raise Refused(
            f"checkpoint.uri {checkpoint.uri} is a folder of each pod, and gone with it: write s3://bucket/prefix, or "
            "mount a volume there that all nodes share, by podTemplate.spec.volumes and the volumeMounts of trainer"
        )
