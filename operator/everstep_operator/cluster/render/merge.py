"""spec.podTemplate over a rendered pod, by the rules that `kubectl patch` has for pods (strategic merge).

Maps are merged; null takes a key away. Lists are replaced as a whole, except those whose items have a name of some
kind: they are merged item by item, and an item with `$patch: delete` takes its namesake away.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from everstep_operator.api.accelerator import CUDA_RESOURCE, TPU_RESOURCE
from everstep_operator.api.pod_template import PodTemplate
from everstep_operator.api.trainer import OWN_VARIABLES
from everstep_operator.cluster.port import Refused
from everstep_operator.cluster.render.placement import REQUIRED
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

#: A sample of a PodSpec, as far as rendering looks into one: what has to be a list, a map or text there.
_CONTAINER_SHAPE: Json = {
    "name": "",
    "image": "",
    "env": [{"name": ""}],
    "envFrom": [{}],
    "volumeMounts": [{"name": "", "mountPath": ""}],
    "volumeDevices": [{}],
    "ports": [{}],
    "resources": {"limits": {}, "requests": {}, "claims": [{}]},
    "securityContext": {},
}
_TERMS_SHAPE: Json = {REQUIRED: [{}]}
_SHAPE: Json = {
    "containers": [_CONTAINER_SHAPE],
    "initContainers": [_CONTAINER_SHAPE],
    "ephemeralContainers": [_CONTAINER_SHAPE],
    "volumes": [{"name": ""}],
    "imagePullSecrets": [{}],
    "hostAliases": [{}],
    "topologySpreadConstraints": [{}],
    "resourceClaims": [{}],
    "schedulingGates": [{}],
    "tolerations": [{"key": "", "effect": ""}],
    "nodeSelector": {},
    "securityContext": {},
    "affinity": {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchFields": [{}]}]}},
        "podAffinity": _TERMS_SHAPE,
        "podAntiAffinity": _TERMS_SHAPE,
    },
}
_KINDS: dict[type, str] = {list: "a list, each item after a dash", dict: "a map of fields", str: "text"}

_DIRECTIVE = "$patch"
#: Of those Everstep has its own items.
_SHARED_LISTS = ("containers", "initContainers", "volumes")
_SHARED_OF_MAIN = ("env", "volumeMounts", "resources")
_OWN_PREFIX = "everstep.dev/"

#: What the operator itself acts on, with where else to say it.
_POD_FIELDS = {
    "restartPolicy": "the operator replaces pods; failurePolicy says how often",
    "hostname": "workers find each other by it",
    "subdomain": "workers find each other by it",
    "nodeName": "the scheduler places pods, away from lost nodes: write podTemplate.spec.nodeSelector",
    "terminationGracePeriodSeconds": "write trainer.terminationGracePeriodSeconds, which the launcher knows as well",
    "priorityClassName": "write scheduling.priorityClassName, which is the coordinator's as well",
    "activeDeadlineSeconds": "it fails each pod, which counts as a restart: write activeDeadlineSeconds of the run",
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
        return strategic_merge({}, {key: value for key, value in patch.items() if key != _DIRECTIVE}, path)
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
        if not isinstance(item, Mapping) or (item.get(name) is None and item.get(_DIRECTIVE) != "replace"):
            raise Refused(f"{where}: each item needs {name}, by which it is merged")
        if item.get(_DIRECTIVE) == "replace":
            items = []
            continue
        same = [index for index, other in enumerate(items) if other.get(name) == item[name]]
        if item.get(_DIRECTIVE) == "delete":
            items = [other for other in items if other.get(name) != item[name]]
        elif same:
            merged = strategic_merge(items[same[0]], item, where)
            # A volume has one source: that of the patch, as kubectl has it by $retainKeys.
            kept = item if where.rpartition(".")[2] == "volumes" else merged
            items[same[0]] = {key: value for key, value in merged.items() if key in kept}
        else:
            items.append(dict(item))
    return items


def check_template(template: PodTemplate | None, main: str) -> None:
    """Raises Refused: the template changes what the operator relies on, or is no PodSpec."""
    if template is None:
        return
    for kind in ("labels", "annotations"):
        for key in getattr(template.metadata, kind):
            if key.startswith(_OWN_PREFIX):
                raise Refused(f"podTemplate.metadata.{kind}: {key} is Everstep's own: remove it")
    where = "podTemplate.spec"
    _check_shape(template.spec, _SHAPE, where)
    if _DIRECTIVE in template.spec:
        raise Refused(f"{where}.{_DIRECTIVE}: it is merged over what Everstep renders, which stays: remove it")
    _check_shared(template.spec, _SHARED_LISTS, where)
    for field, way_out in _POD_FIELDS.items():
        if field in template.spec:
            raise Refused(f"{where}.{field} cannot be changed: {way_out}")
    for index, container in enumerate(template.spec.get("containers", [])):
        if container.get("name") != main:
            _check_sidecar(container, main)
            continue
        if _DIRECTIVE in container:
            raise Refused(f"{where}.containers: {main} is the container that trains, and stays")
        here = f"{where}.containers[{index}]"
        _check_shared(container, _SHARED_OF_MAIN, here)
        _check_shared(container.get("resources", {}), ("limits", "requests"), f"{here}.resources")
        for field, way_out in _CONTAINER_FIELDS.items():
            if field in container:
                raise Refused(f"{where}.containers: {field} of {main} cannot be changed: {way_out}")
        for variable in container.get("env", []):
            if variable.get("name") in (*OWN_VARIABLES, *TORCHRUN):
                raise Refused(f"{where}.containers: {variable['name']} is set by Everstep itself: remove it")
        if _asks_for_devices(container):
            raise Refused(
                f"{where}.containers: the devices of {main} follow from accelerator: remove them there, and "
                "write accelerator.type: cuda and how many in accelerator.count, or type: tpu"
            )


def _check_shape(value: Any, sample: Any, where: str) -> None:
    """Raises Refused: something is of another kind than in the sample. Null is no item, but may be a field's value."""
    if not isinstance(value, type(sample)):
        raise Refused(f"{where} is {json.dumps(value, default=str)[:80]}: write {_KINDS[type(sample)]}")
    if isinstance(sample, list):
        for index, item in enumerate(value):
            _check_shape(item, sample[0], f"{where}[{index}]")
    elif isinstance(sample, dict):
        for key, beneath in sample.items():
            if value.get(key) is not None:
                _check_shape(value[key], beneath, f"{where}.{key}")


def _check_shared(holder: Mapping[str, Any], fields: Iterable[str], where: str) -> None:
    """Raises Refused: what Everstep itself has in these fields would be taken away."""
    for field in fields:
        value = holder.get(field, [])
        if value is None:
            raise Refused(f"{where}.{field} is empty, which takes away what Everstep has there: remove the line")
        directives = [value] if isinstance(value, dict) else [i for i in value if i.get(_DIRECTIVE) == "replace"]
        if any(_DIRECTIVE in item for item in directives):
            raise Refused(f"{where}.{field}: what Everstep has there stays: remove {_DIRECTIVE}")


def _check_sidecar(container: Mapping[str, Any], main: str) -> None:
    """Kubeflow's manifests have the trainer itself there, under another name: it would be a second one."""
    if container.get("name") == _KUBEFLOW or _asks_for_devices(container):
        raise Refused(
            f"podTemplate.spec.containers: {container.get('name')} would be a sidecar, beside {main}, which trains and "
            "has the devices: write trainer.image, trainer.command, trainer.resources and accelerator instead"
        )
    if not {"image", _DIRECTIVE} & container.keys():
        raise Refused(
            f"podTemplate.spec.containers: {container.get('name')} is a sidecar, beside {main}, and has no image: "
            f"write one, or name it {main} if the container that trains is meant"
        )


def _asks_for_devices(container: Mapping[str, Any]) -> bool:
    asked = (container.get("resources") or {}).values()
    return any(name in part for part in asked if isinstance(part, Mapping) for name in (CUDA_RESOURCE, TPU_RESOURCE))
