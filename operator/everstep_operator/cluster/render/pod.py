"""The v1 Pod of a PodSpec."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.coordinator import coordinator
from everstep_operator.cluster.render.placement import keep_off, let_stay
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.cluster.render.worker import worker
from everstep_operator.plan.model import PodSpec
from everstep_protocol import labels


def pod(run: TrainingRun, spec: PodSpec, settings: RenderSettings) -> dict[str, Any]:
    render = coordinator if spec.role == labels.COORDINATOR else worker
    whole = render(run, spec, settings)
    whole["spec"] = let_stay(whole["spec"])  # after podTemplate, which may have its own wishes
    if spec.excluded_nodes:
        whole["spec"] = keep_off(whole["spec"], spec.excluded_nodes)
        whole["metadata"].setdefault("annotations", {})[labels.KEPT_FROM] = ",".join(spec.excluded_nodes)
    return whole
