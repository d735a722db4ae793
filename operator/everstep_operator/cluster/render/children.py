"""The objects of a run beside its pods and the Secret with its token. Applied before the first pod."""

from collections.abc import Iterable
from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.code import config_map
from everstep_operator.cluster.render.disruption import disruption_budget
from everstep_operator.cluster.render.network_policy import among_pods, to_coordinator
from everstep_operator.cluster.render.service import coordinator_service, workers_service
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import Pod


def children(run: TrainingRun, settings: RenderSettings, coordinators: Iterable[Pod] = ()) -> list[dict[str, Any]]:
    """`coordinators`: their pods, as far as they are there already."""
    wanted = (
        coordinator_service(run, settings, coordinators),
        workers_service(run),
        among_pods(run),
        to_coordinator(run, settings),
        disruption_budget(run),
        config_map(run),
    )
    return [child for child in wanted if child is not None]
