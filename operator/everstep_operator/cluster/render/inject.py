"""trainer.injectEverstep: Everstep in an image that lacks it, copied there by an init container."""

from typing import Any

from everstep_operator.cluster.render.security import container_security
from everstep_operator.cluster.render.settings import RenderSettings

FOLDER = "/everstep/packages"
VOLUME = "everstep"

#: `everstep` is not in that image's PATH. -P: never a module from the working folder.
COMMAND = ["python3", "-P", "-m", "everstep.cli"]


def copier(settings: RenderSettings) -> dict[str, Any]:
    """From the operator's image: its Python packages are the same, and it is smaller than one with torch."""
    container = {
        "name": "everstep",
        "image": settings.operator_image,
        "command": ["everstep"],
        "args": ["inject", FOLDER],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        "securityContext": container_security(),
        "volumeMounts": [{"name": VOLUME, "mountPath": FOLDER}],
    }
    return container | ({"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {})


def python_path(given: str | None) -> str:
    """Behind the user's own."""
    return f"{given}:{FOLDER}" if given else FOLDER
