"""What golden files do not say: how parts depend on each other, what is refused."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from everstep_operator.api.pod_template import PodTemplate
from everstep_operator.cluster import render
from everstep_operator.cluster.port import Refused
from everstep_operator.cluster.render import RenderSettings
from everstep_operator.cluster.render.merge import strategic_merge
from everstep_operator.plan import pods, suspend
from everstep_operator.plan.model import Pod
from everstep_protocol import labels
from tests.render.golden import SETTINGS, coordinator, training_run, worker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def trainer(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")


def variables(pod: dict[str, Any]) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in trainer(pod)["env"]}


def with_template(**spec: Any) -> dict[str, Any]:
    return worker(training_run({"podTemplate": {"spec": spec}}), 0)


# --- the container --------------------------------------------------------------------------------------------------


def test_what_the_user_sets_wins_over_defaults_but_not_over_ours() -> None:
    env = [{"name": "HOME", "value": "/mine"}, {"name": "NCCL_DEBUG", "value": "INFO"}]
    given = variables(worker(training_run({"accelerator": {"type": "cuda"}, "trainer": {"env": env}}), 0))
    assert given["HOME"] == "/mine"
    assert given["NCCL_DEBUG"] == "INFO"
    assert given["EVERSTEP_COORDINATOR"].startswith("http://digits-")


def test_one_rank_per_device_unless_said_otherwise() -> None:
    def ranks(spec: dict[str, Any]) -> str:
        arguments = trainer(worker(training_run(spec), 0))["args"]
        return str(arguments[arguments.index("--nproc-per-node") + 1])

    assert ranks({"accelerator": {"type": "cuda", "count": 4}}) == "4"
    assert ranks({"accelerator": {"type": "cuda", "count": 4}, "numProcPerNode": 2}) == "2"
    assert ranks({"accelerator": {"type": "tpu", "tpu": {"accelerator": "a", "topology": "2x2"}}}) == "4"
    assert ranks({}) == "1"


def test_grace_reaches_kubelet_and_launcher() -> None:
    pod = worker(training_run({"trainer": {"terminationGracePeriodSeconds": 300}}), 0)
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300
    assert variables(pod)["EVERSTEP_GRACE_SECONDS"] == "300"


def test_pull_secrets_of_operator_and_run_are_joined() -> None:
    settings = RenderSettings("operator", "runtime", image_pull_secrets=("a", "b"), image_pull_policy="Never")
    run = training_run({"trainer": {"imagePullSecrets": [{"name": "b"}, {"name": "c"}]}})
    pod = render.pod(run, pods.worker(run, 0, 1), settings)
    assert [secret["name"] for secret in pod["spec"]["imagePullSecrets"]] == ["a", "b", "c"]
    assert trainer(pod)["imagePullPolicy"] == "Never"


def test_everstep_is_brought_behind_the_users_own_packages() -> None:
    env = [{"name": "PYTHONPATH", "value": "/mine"}]
    pod = worker(training_run({"trainer": {"injectEverstep": True, "env": env}}), 0)
    assert variables(pod)["PYTHONPATH"] == "/mine:/everstep/packages"


# --- code -----------------------------------------------------------------------------------------------------------


def code_map(text: str) -> str:
    run = training_run({"trainer": {"code": {"files": [{"path": "train.py", "content": text}]}}})
    maps = [child for child in render.children(run, SETTINGS) if child["kind"] == "ConfigMap"]
    assert [volume["configMap"] for volume in worker(run, 0)["spec"]["volumes"] if "configMap" in volume] == [
        {"name": maps[0]["metadata"]["name"]}
    ]
    return str(maps[0]["metadata"]["name"])


def test_other_code_gets_another_name() -> None:
    assert code_map("a") == code_map("a") != code_map("b")


@pytest.mark.parametrize(
    ("given", "folder"), [(None, "/everstep/code"), ("src", "/everstep/code/src"), ("/work", "/work")]
)
def test_command_starts_in_the_code(given: str | None, folder: str) -> None:
    code = {"archive": "s3://bucket/code.zip"}
    whole = {"code": code} if given is None else {"code": code, "workingDir": given}
    assert trainer(worker(training_run({"trainer": whole}), 0))["workingDir"] == folder


# --- TPU slices -----------------------------------------------------------------------------------------------------


def tpu_run(nodes: int, topology: str = "4x4") -> Any:
    tpu = {"accelerator": "tpu-v6e-slice", "topology": topology}
    return training_run({"numNodes": nodes, "accelerator": {"type": "tpu", "tpu": tpu}})


def test_hosts_of_a_slice_know_each_other_in_order() -> None:
    given = [variables(worker(tpu_run(8), node)) for node in range(8)]
    assert [v["TPU_WORKER_ID"] for v in given] == ["0", "1", "2", "3"] * 2
    assert len({v["TPU_WORKER_HOSTNAMES"] for v in given[:4]}) == 1
    for node, v in enumerate(given):  # its own name stands at its own place
        pod = worker(tpu_run(8), node)["spec"]
        own = v["TPU_WORKER_HOSTNAMES"].split(",")[int(v["TPU_WORKER_ID"])]
        assert own == f"{pod['hostname']}.{pod['subdomain']}"
    assert [v["MEGASCALE_SLICE_ID"] for v in given] == ["0"] * 4 + ["1"] * 4
    assert {v["MEGASCALE_COORDINATOR_ADDRESS"] for v in given} == {given[0]["TPU_WORKER_HOSTNAMES"].split(",")[0]}


def test_one_slice_needs_no_megascale() -> None:
    assert not any(name.startswith("MEGASCALE") for name in variables(worker(tpu_run(4), 0)))


@pytest.mark.parametrize("affinity", [None, {"podAntiAffinity": {REQUIRED: []}}, {"podAntiAffinity": None}])
def test_the_template_takes_no_slice_apart(affinity: Any) -> None:
    theirs = worker(tpu_run(4), 0)["spec"]["affinity"]
    run = tpu_run(4)
    spec = run.spec.model_copy(update={"pod_template": PodTemplate(spec={"affinity": affinity})})
    assert worker(run.model_copy(update={"spec": spec}), 0)["spec"]["affinity"] == theirs


def test_wishes_of_the_template_stand_beside_those_of_a_slice() -> None:
    theirs = {"labelSelector": {"matchLabels": {"app": "noisy"}}, "topologyKey": "kubernetes.io/hostname"}
    template = PodTemplate(spec={"affinity": {"podAntiAffinity": {REQUIRED: [theirs]}}})
    run = tpu_run(4)
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"pod_template": template})})
    ours = worker(tpu_run(4), 0)["spec"]["affinity"]["podAntiAffinity"][REQUIRED]
    assert worker(run, 0)["spec"]["affinity"]["podAntiAffinity"][REQUIRED] == [theirs, *ours]


def test_slice_of_one_host_may_share_a_node_pool() -> None:
    assert "affinity" not in worker(tpu_run(1, "2x2"), 0)["spec"]
    assert trainer(worker(tpu_run(1, "1x1"), 0))["resources"]["limits"] == {"google.com/tpu": "1"}


def test_coordinator_may_be_where_every_node_is_tainted() -> None:
    """Nodes without accelerators come first, yet there may be none."""
    taint = {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"}
    for accelerator in ({"tolerations": [taint]}, {"type": "cuda", "tolerations": [taint]}):
        run = training_run({"accelerator": accelerator})
        assert coordinator(run)["spec"]["tolerations"] == worker(run, 0)["spec"]["tolerations"]
        assert taint in coordinator(run)["spec"]["tolerations"]
    assert {taint["effect"] for taint in coordinator(training_run({}))["spec"]["tolerations"]} == {"NoExecute"}


def test_a_silent_kubelet_evicts_nobody_unless_the_run_says_after_how_long() -> None:
    """After an outage of the control plane healthy nodes are NotReady for a while."""

    def stays(**spec: Any) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], worker(training_run(spec), 0)["spec"]["tolerations"])

    for_ever = [
        {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute"}
        for why in ("not-ready", "unreachable")
    ]
    assert stays() == for_ever
    assert coordinator(training_run({}))["spec"]["tolerations"] == for_ever
    a_minute = {**for_ever[0], "tolerationSeconds": 60}
    assert stays(accelerator={"tolerations": [a_minute]}) == [a_minute, for_ever[1]]
    assert stays(podTemplate={"spec": {"tolerations": [a_minute]}}) == [a_minute, for_ever[1]]
    everything = {"operator": "Exists"}
    assert stays(accelerator={"tolerations": [everything]}) == [everything]


def test_a_quota_of_cpu_limits_counts_every_container_of_ours() -> None:
    """It refuses pods with a container that states none."""
    run = training_run({"trainer": {"injectEverstep": True, "resources": {"limits": {"cpu": "4"}}}})
    containers = [*coordinator(run)["spec"]["containers"], *worker(run, 0)["spec"]["initContainers"]]
    assert all("cpu" in container["resources"]["limits"] for container in containers)


# --- podTemplate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"restartPolicy": "Always"}, "podTemplate.spec.restartPolicy cannot be changed: the operator replaces pods"),
        ({"terminationGracePeriodSeconds": 5}, "write trainer.terminationGracePeriodSeconds"),
        ({"priorityClassName": "high"}, "write scheduling.priorityClassName"),
        ({"containers": [{"name": "trainer", "command": ["sh"]}]}, "command of trainer cannot be changed: write"),
        ({"containers": [{"name": "trainer", "image": "other"}]}, "write trainer.image"),
        ({"containers": [{"name": "trainer", "envFrom": []}]}, "write trainer.envFrom"),
        ({"containers": [{"name": "trainer", "$patch": "delete"}]}, "trainer is the container that trains"),
        ({"containers": [{"name": "trainer", "env": [{"name": "EVERSTEP_TOKEN"}]}]}, "is set by Everstep itself"),
        ({"containers": [{"name": "trainer", "env": [{"name": "MASTER_ADDR"}]}]}, "MASTER_ADDR is set by Everstep"),
        (
            {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": 8}}}]},
            "the devices of trainer follow from accelerator: remove them there, and write accelerator.type: cuda",
        ),
        ({"activeDeadlineSeconds": 60}, "which counts as a restart: write activeDeadlineSeconds of the run"),
        ({"containers": [{"name": "train", "tty": True}]}, "has no image: write one, or name it trainer if"),
        (
            {"containers": [{"name": "pytorch", "image": "x"}]},
            "pytorch would be a sidecar, beside trainer, which trains",
        ),
        (
            {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1}}}]},
            "main would be a sidecar, beside trainer, which trains and has the devices: write trainer.image",
        ),
        ({"containers": [{"image": "x"}]}, "podTemplate.spec.containers: each item needs name"),
        ({"volumes": [{"emptyDir": {}}]}, "podTemplate.spec.volumes: each item needs name"),
    ],
)
def test_what_the_operator_relies_on_stays(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        with_template(**spec)
    assert words in str(refusal.value)


def test_our_labels_stay() -> None:
    run = training_run({"podTemplate": {"metadata": {"labels": {"everstep.dev/role": "x"}}}})
    with pytest.raises(Refused, match="role is Everstep's own"):
        worker(run, 0)


def test_template_is_merged_into_what_is_there() -> None:
    pod = with_template(
        nodeSelector={"pool": "a"},
        containers=[{"name": "trainer", "env": [{"name": "A", "value": "1"}], "securityContext": {"runAsUser": 7}}],
    )
    assert variables(pod)["A"] == "1"
    assert variables(pod)["EVERSTEP_NODE"] == "0"
    assert trainer(pod)["securityContext"]["runAsUser"] == 7
    assert trainer(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["nodeSelector"] == {"pool": "a"}


def test_coordinator_is_not_the_templates_business() -> None:
    plain, templated = ({}, {"podTemplate": {"spec": {"nodeSelector": {"pool": "a"}}}})
    assert coordinator(training_run(plain)) == coordinator(training_run(templated))


def test_strategic_merge() -> None:
    base = {
        "a": {"x": 1, "y": 2},
        "tolerations": [{"key": "a"}],
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}],
        "ports": [{"containerPort": 1, "name": "one"}],
    }

    def merged(**patch: Any) -> dict[str, Any]:
        return strategic_merge(base, patch)

    assert merged(a={"y": 3, "z": 4})["a"] == {"x": 1, "y": 3, "z": 4}
    assert merged(a={"x": None})["a"] == {"y": 2}
    assert "a" not in merged(a=None)
    assert merged(a={"$patch": "replace", "z": 1})["a"] == {"z": 1}
    assert "a" not in merged(a={"$patch": "delete"})
    assert merged(tolerations=[{"key": "b"}])["tolerations"] == [{"key": "b"}]  # no merge key: replaced
    assert merged(ports=[{"containerPort": 1, "hostPort": 9}])["ports"] == [
        {"containerPort": 1, "name": "one", "hostPort": 9}
    ]
    assert merged(volumes=[{"name": "a", "$patch": "delete"}])["volumes"] == [{"name": "b", "emptyDir": {}}]
    assert merged(volumes=[{"$patch": "replace"}, {"name": "c"}])["volumes"] == [{"name": "c"}]
    assert [v["name"] for v in merged(volumes=[{"name": "c"}])["volumes"]] == ["a", "b", "c"]
    assert base["a"] == {"x": 1, "y": 2}  # not changed


def test_a_volume_has_the_source_of_the_template() -> None:
    """HOME on a claim, and memory for processes that is bounded: the rest of ours stays."""
    claim = {"name": "home", "persistentVolumeClaim": {"claimName": "h"}}
    pod = with_template(volumes=[claim, {"name": "shm", "emptyDir": {"sizeLimit": "8Gi"}}])
    found = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert found["home"] == claim
    assert found["shm"] == {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}


# --- companions -----------------------------------------------------------------------------------------------------


def kinds(spec: dict[str, Any]) -> list[str]:
    return [child["kind"] for child in render.children(training_run(spec), SETTINGS)]


def test_budget_only_where_a_drain_may_go_on() -> None:
    assert "PodDisruptionBudget" not in kinds({"numNodes": 3})
    assert "PodDisruptionBudget" in kinds({"numNodes": 3, "elasticPolicy": {"minNodes": 2, "maxNodes": 4}})


@pytest.mark.parametrize(("nodes", "kept"), [(4, 2), (3, 2), (2, 1)])
def test_budget_never_keeps_all_pods_also_after_scaling_down(nodes: int, kept: int) -> None:
    run = training_run({"numNodes": nodes, "elasticPolicy": {"minNodes": 2, "maxNodes": 4}})
    budget = next(c for c in render.children(run, SETTINGS) if c["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == kept, "it is applied over the one of before: nobody deletes that"


def test_budget_of_an_elasticity_that_was_taken_back_protects_nothing() -> None:
    """While the run was suspended; the budget of before would be in the way of drains."""
    run = training_run({"numNodes": 3})
    resumed = suspend.resume(suspend.reach(run.status, NOW), NOW)
    run = run.model_copy(update={"status": resumed})
    budget = next(c for c in render.children(run, SETTINGS) if c["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == 0


@pytest.mark.parametrize(
    "terms",
    [
        [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}],
        [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["big"]}]},
        ],
    ],
)
def test_affinity_of_the_template_takes_no_lost_node_back(terms: list[dict[str, Any]]) -> None:
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
    run = training_run({"podTemplate": {"spec": {"affinity": affinity}}})
    pod = render.pod(run, pods.worker(run, 0, 1, ("dead-node",)), SETTINGS)
    away = {"key": "metadata.name", "operator": "NotIn", "values": ["dead-node"]}
    found = pod["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert found == [{**term, "matchFields": [*term.get("matchFields", []), away]} for term in terms]


def test_node_of_the_template_is_refused() -> None:
    with pytest.raises(Refused, match=r"nodeName cannot be changed: the scheduler places pods.*nodeSelector"):
        with_template(nodeName="gpu-7")


def test_service_of_the_coordinator_stays_as_long_as_its_pod() -> None:
    run = training_run({})
    pod = Pod("digits-coordinator-1", "uid-of-it", labels.COORDINATOR, None, 1, "Running")
    service = next(c for c in render.children(run, SETTINGS, [pod]) if c["metadata"]["name"].endswith("-coordinator"))
    owners = service["metadata"]["ownerReferences"]
    assert [(owner["kind"], owner["uid"]) for owner in owners] == [
        ("TrainingRun", run.metadata.uid),
        ("Pod", "uid-of-it"),
    ]
    assert sum(owner.get("controller", False) for owner in owners) == 1


def test_coordinator_is_open_to_all_where_the_operator_is_elsewhere() -> None:
    run = training_run({})
    policies = [
        child
        for child in render.children(run, RenderSettings("operator", "runtime"))
        if child["kind"] == "NetworkPolicy" and child["metadata"]["name"].endswith("-coordinator")
    ]
    assert policies[0]["spec"]["ingress"] == [{"ports": [{"port": "http"}]}]


def test_all_names_fit() -> None:
    """Names of Services and hosts are DNS labels of 63 characters at most."""
    long = training_run({"trainer": {"code": {"files": [{"path": "a"}]}}}).model_copy(
        update={"metadata": training_run({}).metadata.model_copy(update={"name": "a" * 40})}
    )
    names = [child["metadata"]["name"] for child in render.children(long, SETTINGS)]
    names += [
        render.token_secret_name(long),
        worker(long, 0)["spec"]["hostname"],
        worker(long, 9999)["metadata"]["name"],
    ]
    names += worker(tpu_run(4), 0)["metadata"]["labels"].values()
    assert max(map(len, names)) <= 63


# --- checkpoints in a folder ----------------------------------------------------------------------------------------


def saved_in(folder: str, **volume: Any) -> dict[str, Any]:
    mounted = {"name": "trainer", "volumeMounts": [{"name": "shared", "mountPath": "/mnt/shared"}]}
    template = {"spec": {"volumes": [{"name": "shared", **volume}], "containers": [mounted]}} if volume else {}
    return worker(training_run({"checkpoint": {"uri": f"file://{folder}"}, "podTemplate": template}), 0)


@pytest.mark.parametrize("folder", ["/mnt/shared", "/mnt/shared/run"])
def test_a_folder_of_a_volume_that_is_shared_holds_checkpoints(folder: str) -> None:
    assert trainer(saved_in(folder, persistentVolumeClaim={"claimName": "data"}))


@pytest.mark.parametrize(
    ("folder", "volume"),
    [
        ("/ckpt", {}),
        ("/tmp/ckpt", {}),
        ("/mnt/shared/run", {"emptyDir": {}}),
        ("/mnt/shared-not", {"persistentVolumeClaim": {"claimName": "data"}}),
    ],
)
def test_checkpoints_are_not_kept_in_a_pod_that_ends(folder: str, volume: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"checkpoint.uri file://{folder} is a folder of each pod, and gone with it"):
        saved_in(folder, **volume)
