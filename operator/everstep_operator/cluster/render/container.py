"""What the pods of a run have in common: environment, token, image, last words."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render.names import MAIN_CONTAINER, TOKEN_KEY, coordinator_url, token_secret_name
from everstep_operator.cluster.render.security import (
    container_security,
    pod_security,
    writable_env,
    writable_mounts,
    writable_volumes,
)
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.plan.model import PodSpec
from everstep_protocol import env

TERMINATION_FILE = "/dev/termination-log"


def main_container(run: TrainingRun, spec: PodSpec, image: str, settings: RenderSettings) -> dict[str, Any]:
    command, *arguments = spec.command
    return {
        "name": MAIN_CONTAINER[spec.role],
        "image": image,
        "command": [command],
        "args": arguments,
        "env": variables(writable_env() | spec.env) + own_variables(run, settings),
        "terminationMessagePath": TERMINATION_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a launcher that was killed has no last words of its own
        "securityContext": container_security(),
        "volumeMounts": writable_mounts(),
    }


def pod_spec(spec: PodSpec, container: dict[str, Any], pull_secrets: Iterable[str]) -> dict[str, Any]:
    """Without what is particular to a role."""
    return {
        # A pod is judged, counted and replaced by the operator, on another node if need be. A kubelet that restarted
        # its container behind our back would do so without budget, backoff and a new attempt.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(spec.grace_seconds),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a variable for each Service of the namespace
        "securityContext": pod_security(),
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(pull_secrets)],
        "containers": [container],
        "volumes": writable_volumes(),
    }


def variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def own_variables(run: TrainingRun, settings: RenderSettings) -> list[dict[str, Any]]:
    """What the planner cannot know."""
    return [
        {"name": env.COORDINATOR, "value": coordinator_url(run, settings)},
        {
            "name": env.TOKEN,
            "valueFrom": {"secretKeyRef": {"name": token_secret_name(run), "key": TOKEN_KEY}},
        },
        from_field(env.NODE_ADDRESS, "status.podIP"),
        {"name": env.TERMINATION_FILE, "value": TERMINATION_FILE},
    ]


def from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
