"""The pod of the run's coordinator, from the operator's image, small, and away from where training computes."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.container import main_container, own_variables, planned_variables, pod_spec
from everstep_operator.cluster.render.metadata import metadata
from everstep_operator.cluster.render.placement import place_coordinator
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import PodSpec


def coordinator(run: TrainingRun, spec: PodSpec, settings: RenderSettings) -> dict[str, Any]:
    variables = [*planned_variables(spec), *own_variables(run, settings)]
    container = main_container(spec, settings.operator_image, settings.image_pull_policy, variables)
    container["args"] += ["--port", str(settings.coordinator_port)]
    container["ports"] = [{"name": "http", "containerPort": settings.coordinator_port}]
    container["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}
    body = pod_spec(run, spec, settings.image_pull_secrets)
    place_coordinator(body, run)
    body["containers"] = [container]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(run, spec.name, spec.labels), "spec": body}
