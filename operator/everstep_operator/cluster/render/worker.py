"""The pod of one node: the launcher in the user's image."""

from typing import Any

from everstep_operator.api.trainer import Trainer
from everstep_operator.api.trainingrun import TrainingRun
from everstep_operator.cluster.render import code, inject
from everstep_operator.cluster.render.container import (
    from_field,
    main_container,
    own_variables,
    planned_variables,
    pod_spec,
    values,
)
from everstep_operator.cluster.render.merge import apply_template
from everstep_operator.cluster.render.metadata import metadata
from everstep_operator.cluster.render.names import MAIN_CONTAINER, worker_hostname, workers_service_name
from everstep_operator.cluster.render.placement import keep_together, place_worker, pool_of
from everstep_operator.cluster.render.pool import Pool
from everstep_operator.cluster.render.settings import RenderSettings
from everstep_operator.cluster.render.store import check_folder, open_store
from everstep_operator.plan.model import PodSpec
from everstep_protocol import labels


def worker(run: TrainingRun, spec: PodSpec, settings: RenderSettings) -> dict[str, Any]:
    """Raises Refused: podTemplate changes what the operator relies on, or checkpoints have no place."""
    assert spec.node is not None
    trainer, pool = run.spec.trainer, pool_of(run)
    pull_secrets = [*settings.image_pull_secrets, *(secret.name for secret in trainer.image_pull_secrets)]
    body = pod_spec(run, spec, pull_secrets)
    body["hostname"], body["subdomain"] = worker_hostname(spec.node), workers_service_name(run)
    if trainer.service_account_name is not None:
        body["serviceAccountName"] = trainer.service_account_name
    place_worker(body, pool)

    container = _trainer(run, spec, settings, pool)
    if trainer.env_from:
        container["envFrom"] = [source.model_dump(mode="json", exclude_none=True) for source in trainer.env_from]
    open_store(run, container, body)
    # 64 MiB, what a container has otherwise, are too little for NCCL and for DataLoader workers.
    body["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    before = _init_containers(run, settings, container, body)
    code.mount_code(run, container, body)
    if before:
        body["initContainers"] = before
    body["containers"] = [container]

    own_labels = spec.labels | pool.labels(spec.node)
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(run, spec.name, own_labels), "spec": body}
    main = MAIN_CONTAINER[labels.WORKER]
    pod = apply_template(whole, run.spec.pod_template, main)
    pod["spec"] = keep_together(pod["spec"], pool.affinity(spec.node))  # beside the wishes of podTemplate
    (merged,) = (c for c in pod["spec"]["containers"] if c["name"] == main)
    check_folder(run, merged, pod["spec"]["volumes"])
    return pod


def _trainer(run: TrainingRun, spec: PodSpec, settings: RenderSettings, pool: Pool) -> dict[str, Any]:
    assert spec.node is not None
    trainer = run.spec.trainer
    variables = [
        *values(pool.env(spec.node)),
        # Images of ours switch it on for everstep itself; a script finds the modules that lie beside it.
        *values({"PYTHONSAFEPATH": ""}),
        from_field("NODE_NAME", "spec.nodeName"),
        from_field("POD_IP", "status.podIP"),
        *planned_variables(spec),
        *_from_elsewhere(trainer),
        *own_variables(run, settings),
    ]
    if trainer.inject_everstep:
        variables += values({"PYTHONPATH": inject.python_path(spec.env.get("PYTHONPATH"))})
    container = main_container(spec, *_image(trainer, settings), variables)
    if trainer.inject_everstep:
        container["command"], container["args"] = inject.COMMAND, list(spec.command[1:])
    if (folder := code.working_dir(run)) is not None:
        container["workingDir"] = folder
    if resources := _resources(trainer, pool.devices()):
        container["resources"] = resources
    return container


def _image(trainer: Trainer, settings: RenderSettings) -> tuple[str, str | None]:
    """Image and pull policy."""
    if trainer.image is None:
        return settings.runtime_image, trainer.image_pull_policy or settings.image_pull_policy
    return trainer.image, trainer.image_pull_policy


def _from_elsewhere(trainer: Trainer) -> list[dict[str, Any]]:
    return [
        {"name": variable.name, "valueFrom": variable.value_from.model_dump(mode="json", exclude_none=True)}
        for variable in trainer.env
        if variable.value_from is not None
    ]


def _resources(trainer: Trainer, devices: dict[str, str]) -> dict[str, Any]:
    """Devices are requested by their limits; Kubernetes wants both to be the same."""
    requests, limits = dict(trainer.resources.requests), trainer.resources.limits | devices
    return {name: value for name, value in (("requests", requests), ("limits", limits)) if value}


def _init_containers(
    run: TrainingRun, settings: RenderSettings, trainer: dict[str, Any], body: dict[str, Any]
) -> list[dict[str, Any]]:
    """What has to be in place before the trainer starts. Volumes go into the pod's spec and into the trainer."""
    before = []
    if run.spec.trainer.inject_everstep:
        body["volumes"].append({"name": inject.VOLUME, "emptyDir": {}})
        trainer["volumeMounts"].append({"name": inject.VOLUME, "mountPath": inject.FOLDER, "readOnly": True})
        before.append(inject.copier(settings))
    if (arguments := code.fetch_arguments(run)) is not None:
        command = trainer["command"] if run.spec.trainer.inject_everstep else ["everstep"]
        fetcher: dict[str, Any] = {
            key: trainer[key] for key in ("image", "imagePullPolicy", "env", "envFrom") if key in trainer
        }
        if resources := _resources(run.spec.trainer, {}):  # a quota may ask it of every container
            fetcher["resources"] = resources
        mounts = [mount for mount in trainer["volumeMounts"] if mount["name"] != "shm"]
        before.append(
            {"name": "code"}
            | fetcher
            | {
                "command": command,
                "args": arguments,
                "securityContext": trainer["securityContext"],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [*mounts, {"name": "code", "mountPath": code.FOLDER}],
            }
        )
    return before
