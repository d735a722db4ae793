"""The objects of a run beside its pods and the Secret with its token. Applied before the first pod."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.code import config_map
from everstep_operator.cluster.render.disruption import disruption_budget
from everstep_operator.cluster.render.network_policy import among_pods, to_coordinator
from everstep_operator.cluster.render.service import coordinator_service, workers_service
from everstep_operator.cluster.render.settings import RenderSettings


def children(run: TrainingRun, settings: RenderSettings) -> list[dict[str, Any]]:
    wanted = (
        coordinator_service(run, settings),
        workers_service(run),
        among_pods(run),
        to_coordinator(run, settings),
        disruption_budget(run),
        config_map(run),
    )
    return [child for child in wanted if child is not None]
