"""What a run looks like on Kubernetes: pure functions from a TrainingRun to the objects that the API server gets.

pod(run, spec, settings)                 the v1 Pod of a PodSpec
children(run, settings, coordinators)    what has to be there before the first pod, and again once coordinators are
"""

from everstep_operator.cluster.render.children import children
from everstep_operator.cluster.render.names import (
    MAIN_CONTAINER,
    TOKEN_KEY,
    coordinator_url,
    token_secret_name,
)
from everstep_operator.cluster.render.pod import pod
from everstep_operator.cluster.render.secret import token_secret
from everstep_operator.cluster.render.settings import RenderSettings

__all__ = [
    "MAIN_CONTAINER",
    "TOKEN_KEY",
    "RenderSettings",
    "children",
    "coordinator_url",
    "pod",
    "token_secret",
    "token_secret_name",
]
