"""spec.podTemplate over a rendered pod, by the rules that `kubectl patch` has for pods (strategic merge).

Maps are merged; null takes a key away. Lists are replaced as a whole, except those whose items have a name of some
kind: they are merged item by item, and an item with `$patch: delete` takes its namesake away.
"""

from collections.abc import Mapping
from typing import Any

from everstep_operator.api.accelerator import CUDA_RESOURCE, TPU_RESOURCE
from everstep_operator.api.pod_template import PodTemplate
from everstep_operator.api.trainer import OWN_VARIABLES
from everstep_operator.cluster.port import Refused
from everstep_protocol.env import TORCHRUN

Json = dict[str, Any]

#: By the name of the list: what its items are told apart by. The patchMergeKey of core/v1; absent there: replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}

_DIRECTIVE = "$patch"
_OWN_PREFIX = "everstep.dev/"

#: What the operator itself acts on, with where else to say it.
_POD_FIELDS = {
    "restartPolicy": "the operator replaces pods; failurePolicy says how often",
    "hostname": "workers find each other by it",
    "subdomain": "workers find each other by it",
    "nodeName": "the scheduler places pods, away from lost nodes: write podTemplate.spec.nodeSelector",
    "terminationGracePeriodSeconds": "write trainer.terminationGracePeriodSeconds, which the launcher knows as well",
    "priorityClassName": "write scheduling.priorityClassName, which is the coordinator's as well",
}
_CONTAINER_FIELDS = {
    "image": "write trainer.image",
    "command": "write trainer.command",
    "args": "write trainer.args",
    "workingDir": "write trainer.workingDir",
    "envFrom": "write trainer.envFrom",
    "terminationMessagePath": "the launcher's last words are read from there",
    "terminationMessagePolicy": "the launcher's last words are read from there",
}

#: What Kubeflow's training-operator calls the container that trains.
_KUBEFLOW = "pytorch"


def apply_template(pod: Json, template: PodTemplate | None, main: str) -> Json:
    """The pod with the user's template merged over it; `main` is the trainer's container.

    Raises:
        Refused: the template changes what the operator relies on, or is no PodSpec.
    """
    check_template(template, main)
    if template is None:
        return pod
    metadata = {"labels": template.metadata.labels, "annotations": template.metadata.annotations}
    patch = {"metadata": {key: value for key, value in metadata.items() if value}, "spec": template.spec}
    return strategic_merge(pod, patch, "podTemplate")


def strategic_merge(base: Json, patch: Mapping[str, Any], path: str = "") -> Json:
    """A new object; neither of the two is changed. `path` names the patch in refusals."""
    if patch.get(_DIRECTIVE) == "replace":
        return {key: value for key, value in patch.items() if key != _DIRECTIVE}
    merged = dict(base)
    for key, value in patch.items():
        where = f"{path}.{key}".lstrip(".")
        if value is None or (isinstance(value, Mapping) and value.get(_DIRECTIVE) == "delete"):
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            beneath = merged.get(key)
            merged[key] = strategic_merge(beneath if isinstance(beneath, dict) else {}, value, where)
        elif isinstance(value, list) and key in MERGE_KEYS:
            merged[key] = _merge_list(merged.get(key) or [], value, MERGE_KEYS[key], where)
        else:
            merged[key] = value
    return merged


def _merge_list(base: list[Json], patch: list[Any], name: str, where: str) -> list[Json]:
    items = list(base)
    for item in patch:
        if not isinstance(item, Mapping) or (name not in item and item.get(_DIRECTIVE) != "replace"):
            raise Refused(f"{where}: each item needs {name}, by which it is merged")
        if item.get(_DIRECTIVE) == "replace":
            items = []
            continue
        same = [index for index, other in enumerate(items) if other.get(name) == item[name]]
        if item.get(_DIRECTIVE) == "delete":
            items = [other for other in items if other.get(name) != item[name]]
        elif same:
            items[same[0]] = strategic_merge(items[same[0]], item, where)
        else:
            items.append(dict(item))
    return items


def check_template(template: PodTemplate | None, main: str) -> None:
    """Raises Refused: the template changes what the operator relies on."""
    if template is None:
        return
    for kind in ("labels", "annotations"):
        for key in getattr(template.metadata, kind):
            if key.startswith(_OWN_PREFIX):
                raise Refused(f"podTemplate.metadata.{kind}: {key} is Everstep's own: remove it")
    for field, way_out in _POD_FIELDS.items():
        if field in template.spec:
            raise Refused(f"podTemplate.spec.{field} cannot be changed: {way_out}")
    containers = template.spec.get("containers", [])
    for container in containers if isinstance(containers, list) else []:
        if not isinstance(container, Mapping):
            continue
        if container.get("name") != main:
            _check_sidecar(container, main)
            continue
        if _DIRECTIVE in container:
            raise Refused(f"podTemplate.spec.containers: {main} is the container that trains, and stays")
        for field, way_out in _CONTAINER_FIELDS.items():
            if field in container:
                raise Refused(f"podTemplate.spec.containers: {field} of {main} cannot be changed: {way_out}")
        variables = container.get("env", [])
        for variable in variables if isinstance(variables, list) else []:
            if isinstance(variable, Mapping) and variable.get("name") in (*OWN_VARIABLES, *TORCHRUN):
                raise Refused(f"podTemplate.spec.containers: {variable['name']} is set by Everstep itself: remove it")
        if _asks_for_devices(container):
            raise Refused(
                f"podTemplate.spec.containers: the devices of {main} follow from accelerator: remove them there, and "
                "write accelerator.type: cuda and how many in accelerator.count, or type: tpu"
            )


def _check_sidecar(container: Mapping[str, Any], main: str) -> None:
    """Kubeflow's manifests have the trainer itself there, under another name: it would be a second one."""
    if container.get("name") == _KUBEFLOW or _asks_for_devices(container):
        raise Refused(
            f"podTemplate.spec.containers: {container.get('name')} would be a sidecar, beside {main}, which trains and "
            "has the devices: write trainer.image, trainer.command, trainer.resources and accelerator instead"
        )


def _asks_for_devices(container: Mapping[str, Any]) -> bool:
    resources = container.get("resources")
    asked = resources.values() if isinstance(resources, Mapping) else ()
    return any(name in part for part in asked if isinstance(part, Mapping) for name in (CUDA_RESOURCE, TPU_RESOURCE))
