"""Slips in podTemplate: a pod, or a refusal that says where and what to write. An exception would keep a run silent."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep_operator.cluster import render
from everstep_operator.cluster.port import Refused
from everstep_operator.plan import pods
from tests.render.golden import SETTINGS, training_run

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
TERM = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}], "matchFields": []}
SOUND: dict[str, Any] = {
    "containers": [
        {
            "name": "trainer",
            "env": [{"name": "A", "value": "1"}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "ports": [{"containerPort": 9000}],
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
            "securityContext": {"runAsUser": 7},
        },
        {"name": "logs", "image": "logs:1", "env": [{"name": "B"}]},
    ],
    "initContainers": [{"name": "fill", "image": "fill:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "nodeSelector": {"pool": "a"},
    "imagePullSecrets": [{"name": "registry"}],
    "topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1}],
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["store"]}],
    "affinity": {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [TERM]}},
        "podAffinity": {REQUIRED: [{"topologyKey": "zone"}]},
        "podAntiAffinity": {REQUIRED: [{"topologyKey": "zone"}]},
    },
    "securityContext": {"fsGroup": 7},
}
RUN = {
    "checkpoint": {"uri": "file:///data/run"},
    "numNodes": 4,
    "accelerator": {"type": "tpu", "tpu": {"accelerator": "tpu-v6e-slice", "topology": "4x4"}},
}
Path = tuple[str | int, ...]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Of everything in it, and of a directive in each map."""
    if at:
        yield at
    if isinstance(value, dict):
        yield (*at, "$patch")
    for key, beneath in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(beneath, (*at, key))


PATHS = list(paths(SOUND))
NONSENSE: list[Any] = [
    None, "", "trainer", 7, -1.5, True, [], {}, [None], ["x"], [7], [[]], [{}], {"name": "trainer"}, {"key": []},
    [{"name": []}], [{"name": None}], "replace", "delete", {"$patch": "replace"}, {"$patch": "delete"},
    [{"$patch": "replace"}], [{"$patch": "delete"}], [{"mountPath": "/data"}], {REQUIRED: None}, {REQUIRED: [None]},
    {"$patch": "replace", REQUIRED: {"nodeSelectorTerms": None}},
]  # fmt: skip


def with_slips(*slips: tuple[Path, Any]) -> dict[str, Any]:
    spec = copy.deepcopy(SOUND)
    for (*parents, last), value in slips:
        holder: Any = spec
        try:
            for key in parents:
                holder = holder[key]
            holder[last] = copy.deepcopy(value)
        except (TypeError, KeyError, IndexError):
            continue  # an earlier slip has put something else there
    return spec


def render_it(spec: dict[str, Any]) -> dict[str, Any]:
    run = training_run({**RUN, "podTemplate": {"spec": spec}})
    return render.pod(run, pods.worker(run, 0, 1, ("dead-node",)), SETTINGS)


def test_the_sound_template_is_rendered() -> None:
    assert [c["name"] for c in render_it(SOUND)["spec"]["containers"]] == ["trainer", "logs"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_any_slip_is_a_pod_or_a_refusal(path: Path) -> None:
    for value in NONSENSE:
        _pod_or_refusal(with_slips((path, value)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(NONSENSE)), min_size=2, max_size=4))
def test_several_slips_are_a_pod_or_a_refusal(slips: list[tuple[Path, Any]]) -> None:
    _pod_or_refusal(with_slips(*slips))


def _pod_or_refusal(spec: dict[str, Any]) -> None:
    pod, said = None, ""
    try:
        pod = render_it(spec)
    except Refused as refusal:
        said = str(refusal)
    if pod is None:
        assert said.startswith(("podTemplate.spec", "checkpoint.uri"))
        return
    (trainer,) = (c for c in pod["spec"]["containers"] if c["name"] == "trainer")
    assert "EVERSTEP_TOKEN" in {variable["name"] for variable in trainer["env"]}
    assert {"google.com/tpu"} <= trainer["resources"]["limits"].keys()
    assert {"home", "shm"} <= {volume["name"] for volume in pod["spec"]["volumes"]}
    assert pod["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] is not None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"containers": None},
            "podTemplate.spec.containers is empty, which takes away what Everstep has there: remove",
        ),
        ({"volumes": None}, "podTemplate.spec.volumes is empty"),
        (
            {"containers": {"name": "trainer"}},
            'containers is {"name": "trainer"}: write a list, each item after a dash',
        ),
        (
            {"containers": [{"$patch": "replace"}]},
            "podTemplate.spec.containers: what Everstep has there stays: remove $",
        ),
        (
            {"$patch": "replace"},
            "podTemplate.spec.$patch: it is merged over what Everstep renders, which stays: remove",
        ),
        ({"tolerations": "gpu"}, 'podTemplate.spec.tolerations is "gpu": write a list'),
        ({"tolerations": ["gpu"]}, 'podTemplate.spec.tolerations[0] is "gpu": write a map of fields'),
        ({"affinity": {"nodeAffinity": "x"}}, 'podTemplate.spec.affinity.nodeAffinity is "x": write a map'),
        ({"containers": [{"name": "trainer", "env": None}]}, "podTemplate.spec.containers[0].env is empty"),
        ({"containers": [{"name": "trainer", "env": [{"$patch": "replace"}]}]}, "containers[0].env: what Everstep has"),
        ({"containers": [{"name": "trainer", "resources": None}]}, "podTemplate.spec.containers[0].resources is empty"),
    ],
)
def test_a_refusal_says_where_and_what_to_write(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        render_it(spec)
    assert words in str(refusal.value)
