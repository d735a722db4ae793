"""What the `restricted` Pod Security Standard asks for, and folders to write to below a read-only root."""

from typing import Any

USER = 65532  # "nonroot", as in our images; any other does as well
HOME = "/home/everstep"


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",  # a large volume is not walked through at each start
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def writable_env() -> dict[str, str]:
    # USER: the uid has no entry in the image's /etc/passwd, and getpass.getuser() would fail without one.
    return {"HOME": HOME, "USER": "everstep"}


def writable_volumes() -> list[dict[str, Any]]:
    return [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]


def writable_mounts() -> list[dict[str, Any]]:
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}]
