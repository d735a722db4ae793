"""The S3 server in the cluster, and a pod with Everstep's own client to look into it."""

import os
from typing import Any

from tests.cluster.kube import Object, apply, get, kubectl, until
from tests.cluster.runs import BUCKET, CREDENTIALS, ENDPOINT, STORE

ACCESS_KEY, SECRET_KEY = "everstep-tests", "not-a-secret"

RESTRICTED: Object = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def credentials(namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": CREDENTIALS, "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
    }


def _pod(name: str, container: Object, **spec: Any) -> Object:
    container |= {"securityContext": CONTAINER, "envFrom": [{"secretRef": {"name": CREDENTIALS}}]}
    container |= {"imagePullPolicy": "IfNotPresent"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": STORE, "labels": {"app": name}},
        "spec": {
            "securityContext": RESTRICTED,
            "automountServiceAccountToken": False,
            "containers": [container],
            # After an outage of the API server every node is NotReady for a while; an evicted bare pod is gone.
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
        }
        | spec,
    }


def start() -> None:
    """Bring both up, if they are not, and wait until the bucket is there."""
    server = {
        "name": "s3",
        "image": os.environ["EVERSTEP_S3_IMAGE"],
        "args": [
            *("weed", "mini", "-dir=/data", "-ip.bind=0.0.0.0", "-s3.port=8333", f"-bucket={BUCKET}"),
            *("-webdav=false", "-admin.ui=false", "-master.telemetry=false"),
        ],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8333}, "periodSeconds": 1},
    }
    toolbox = {
        "name": "toolbox",
        "image": os.environ["EVERSTEP_RUNTIME_IMAGE"],
        "command": ["sleep", "infinity"],
        "env": [
            {"name": "AWS_ENDPOINT_URL", "value": ENDPOINT},
            {"name": "AWS_ALLOW_HTTP", "value": "true"},
            {"name": "AWS_REGION", "value": "us-east-1"},
        ],
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3", "namespace": STORE},
        "spec": {"selector": {"app": "s3"}, "ports": [{"port": 8333}]},
    }
    data = [{"name": "data", "emptyDir": {}}]
    # On the server's node, which the tests spare: bare pods do not come back.
    beside = [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "s3"}}}]
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": beside}}
    tools = _pod("toolbox", toolbox, terminationGracePeriodSeconds=0, affinity=affinity)
    for pod in (_pod("s3", server, volumes=data), tools):
        if get("pod", pod["metadata"]["name"], STORE) is None:
            apply(credentials(STORE), service, pod)
    kubectl("wait", "pod", "s3", "toolbox", "-n", STORE, "--for=condition=Ready", "--timeout=120s", timeout=130)
    until("the bucket is there", lambda: objects("") is not None, 30)


def python(script: str, *arguments: str) -> str:
    """Run a script in the cluster, with Everstep, torch and the store's credentials; what it printed."""
    return kubectl("exec", "-i", "toolbox", "-n", STORE, "--", "python", "-", *arguments, stdin=script)


def objects(prefix: str) -> list[str]:
    """Keys in the bucket below a prefix."""
    script = f"""
import os
from obstore.store import S3Store
store = S3Store({BUCKET!r}, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={{"allow_http": True}})
print("\\n".join(item["path"] for page in store.list({prefix!r} or None) for item in page))
"""
    return python(script).split()


def content(key: str) -> str:
    script = f"""
import os
from obstore.store import S3Store
store = S3Store({BUCKET!r}, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={{"allow_http": True}})
print(bytes(store.get({key!r}).bytes()).decode())
"""
    return python(script)
