"""Names of a run's objects. All of them begin with the run's name and a hash of its uid, and fit into DNS labels."""

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.pods import prefix
from everstep_protocol import labels

#: By role: the container whose end is the pod's end, whatever runs beside it.
MAIN_CONTAINER = {labels.WORKER: "trainer", labels.COORDINATOR: "coordinator"}

#: In the Secret that holds the run's token.
TOKEN_KEY = "token"


def token_secret_name(run: TrainingRun) -> str:
    return f"{prefix(run)}-token"


def coordinator_service_name(run: TrainingRun) -> str:
    return f"{prefix(run)}-coordinator"


def workers_service_name(run: TrainingRun) -> str:
    """The headless Service below which workers have names."""
    return f"{prefix(run)}-workers"


def coordinator_url(run: TrainingRun, settings: RenderSettings) -> str:
    return f"http://{coordinator_service_name(run)}.{run.metadata.namespace}.svc:{settings.coordinator_port}"


def worker_hostname(node: int) -> str:
    """The same for each attempt at this node."""
    return f"worker-{node}"
