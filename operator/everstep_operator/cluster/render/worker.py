"""The pod of one node: the launcher in the user's image."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.container import from_field, main_container, pod_spec
from everstep_operator.cluster.render.metadata import metadata
from everstep_operator.cluster.render.names import worker_hostname, workers_service_name
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import PodSpec


def worker(run: TrainingRun, spec: PodSpec, settings: RenderSettings) -> dict[str, Any]:
    assert spec.node is not None
    container = main_container(run, spec, settings.runtime_image, settings)
    container["env"] += [from_field("NODE_NAME", "spec.nodeName"), from_field("POD_IP", "status.podIP")]
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    if spec.working_dir is not None:
        container["workingDir"] = spec.working_dir
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    body = pod_spec(spec, container, settings.image_pull_secrets)
    body["hostname"] = worker_hostname(spec.node)
    body["subdomain"] = workers_service_name(run)
    # 64 MiB, what a container has otherwise, are too little for NCCL and for DataLoader workers.
    body["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(run, spec.name, spec.labels), "spec": body}
