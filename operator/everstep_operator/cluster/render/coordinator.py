"""The pod of the run's coordinator, from the operator's image, small, and away from where training computes."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.container import main_container, pod_spec
from everstep_operator.cluster.render.metadata import metadata
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import PodSpec


def coordinator(run: TrainingRun, spec: PodSpec, settings: RenderSettings) -> dict[str, Any]:
    container = main_container(run, spec, settings.operator_image, settings)
    container["args"] += ["--port", str(settings.coordinator_port)]
    container["ports"] = [{"name": "http", "containerPort": settings.coordinator_port}]
    container["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    body = pod_spec(spec, container, settings.image_pull_secrets)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(run, spec.name, spec.labels), "spec": body}
