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


def main_container(
    spec: PodSpec, image: str, pull_policy: str | None, variables: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    command, *arguments = spec.command
    container: dict[str, Any] = {"name": MAIN_CONTAINER[spec.role], "image": image}
    if pull_policy is not None:
        container["imagePullPolicy"] = pull_policy
    return container | {
        "command": [command],
        "args": arguments,
        "env": list({variable["name"]: variable for variable in variables}.values()),  # of two, the later
        "terminationMessagePath": TERMINATION_FILE,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a launcher that was killed has no last words of its own
        "securityContext": container_security(),
        "volumeMounts": writable_mounts(),
    }


def pod_spec(run: TrainingRun, spec: PodSpec, pull_secrets: Iterable[str]) -> dict[str, Any]:
    """Without containers, and without what is particular to a role."""
    body: dict[str, Any] = {
        # A pod is judged, counted and replaced by the operator, on another node if need be. A kubelet that restarted
        # its container behind our back would do so without budget, backoff and a new attempt.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(spec.grace_seconds),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a variable for each Service of the namespace
        "securityContext": pod_security(),
        "volumes": writable_volumes(),
    }
    if names := list(dict.fromkeys(pull_secrets)):
        body["imagePullSecrets"] = [{"name": name} for name in names]
    if (priority := run.spec.scheduling.priority_class_name) is not None:
        body["priorityClassName"] = priority
    return body


def planned_variables(spec: PodSpec) -> list[dict[str, Any]]:
    return values(writable_env() | spec.env)


def own_variables(run: TrainingRun, settings: RenderSettings) -> list[dict[str, Any]]:
    """What the planner cannot know."""
    token = {"secretKeyRef": {"name": token_secret_name(run), "key": TOKEN_KEY}}
    return [
        *values({env.COORDINATOR: coordinator_url(run, settings), env.TERMINATION_FILE: TERMINATION_FILE}),
        {"name": env.TOKEN, "valueFrom": token},
        from_field(env.NODE_ADDRESS, "status.podIP"),
    ]


def values(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
