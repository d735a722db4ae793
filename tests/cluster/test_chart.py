"""The chart: what it renders is accepted by the API server, and what it refuses it refuses with a sentence."""

import argparse
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from everstep_operator import settings
from tests.cluster.conftest import CHART, RELEASE, SYSTEM, chart_values, namespace, one_at_a_time
from tests.cluster.kube import Object, apply, get, kubectl

ROOT = Path(__file__).parents[2]

#: Where somebody has put the two images.
IMAGES = ("--set", "image.repository=r.example/e/operator", "--set", "runtimeImage.repository=r.example:5000/e/runtime")

Helm = Callable[..., str]


def rendered(helm: Helm, *arguments: str) -> list[Object]:
    text = helm("template", RELEASE, CHART, "--namespace", SYSTEM, *IMAGES, *arguments)
    return [document for document in yaml.safe_load_all(text) if document]


EVERYTHING = {
    "resources.limits.cpu": "1",
    "nodeSelector.pool": "system",
    "tolerations[0].key": "system",
    "tolerations[0].operator": "Exists",
    "podLabels.team": "ml",
    "podAnnotations.why": "test",
    "serviceAccount.annotations.role": "x",
    "imagePullSecrets[0]": "registry",
    "tokenKey.existingSecret": "mine",
    "replicas": "3",
}


@pytest.mark.cluster
@pytest.mark.parametrize(
    "values",
    [{}, {"namespaces[0]": "default", "namespaces[1]": SYSTEM}, EVERYTHING],
    ids=["default", "namespaced", "everything"],
)
def test_the_api_server_accepts_every_object(cluster: None, helm: Helm, values: dict[str, str]) -> None:
    namespace(SYSTEM)
    arguments = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    objects = rendered(helm, *arguments)
    assert len(objects) > 10
    apply(*objects, arguments=("--dry-run=server", "--force-conflicts", "--server-side", "--validate=strict"))


@pytest.mark.cluster
def test_the_pods_of_the_operator_are_restricted(cluster: None, helm: Helm) -> None:
    """In a namespace that enforces the restricted standard, a warning would be a pod that never comes."""
    namespace(SYSTEM)
    (deployment,) = [o for o in rendered(helm) if o["kind"] == "Deployment"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "like-the-operator", "namespace": SYSTEM}}
    template = deployment["spec"]["template"]
    spec = template["spec"] | {"serviceAccountName": "default", "priorityClassName": None}
    apply(pod | {"spec": spec}, arguments=("--dry-run=server",))
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["requests"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert deployment["spec"]["replicas"] == 2


@pytest.mark.cluster
def test_in_namespaces_it_asks_for_no_rights_on_the_cluster(helm: Helm) -> None:
    without = ("namespaces[0]=team-a", "aggregateRoles=false", "priorityClass.create=false", "crd.install=false")
    objects = rendered(helm, *(word for value in without for word in ("--set", value)))
    assert not [o for o in objects if "namespace" not in o["metadata"]]
    assert [o["metadata"]["namespace"] for o in objects if o["kind"] == "Role"] == ["team-a", SYSTEM]
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"] == ["--namespace=team-a"]


@pytest.mark.cluster
@pytest.mark.serial
def test_a_second_release_beside_the_first(operator: None, helm: Helm) -> None:
    """A team's own operator, by the plain command: no name of the first is in its way, and the kind stays its."""
    if get("namespace", "everstep-test-team") is None:
        kubectl("create", "namespace", "everstep-test-team")
    where = ("--namespace", "everstep-test-team")
    values = chart_values(replicas="0", **{"namespaces[0]": "everstep-test-team"})
    before = get("crd", "trainingruns.everstep.dev")
    assert before is not None
    try:
        said = helm("install", RELEASE, CHART, *where, *values)
        assert "was there already" in said
        helm("upgrade", RELEASE, CHART, *where, *values)
        after = get("crd", "trainingruns.everstep.dev")
        assert after is not None
        assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
        assert get("priorityclass", "everstep-test-team-everstep") is not None
    finally:
        helm("uninstall", RELEASE, *where, "--wait")
        kubectl("delete", "namespace", "everstep-test-team", "--wait=false")
    assert get("crd", "trainingruns.everstep.dev") is not None
    assert get("priorityclass", f"{SYSTEM}-{RELEASE}") is not None


@pytest.mark.cluster
def test_names_of_the_whole_cluster_are_told_apart_by_namespace(helm: Helm) -> None:
    def names(namespace: str) -> set[tuple[str, str]]:
        objects = rendered(helm, "--namespace", namespace, "--set", f"namespaces[0]={namespace}")
        return {(o["kind"], o["metadata"]["name"]) for o in objects if "namespace" not in o["metadata"]}

    both = names("team-a") & names("team-b")
    assert both == {("CustomResourceDefinition", "trainingruns.everstep.dev")}


@pytest.mark.cluster
def test_an_image_by_its_digest(helm: Helm) -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    objects = rendered(helm, "--set", f"image.tag={digest}", "--set", "runtimeImage.tag=v2")
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"r.example/e/operator@{digest}"
    assert {"name": "EVERSTEP_RUNTIME_IMAGE", "value": "r.example:5000/e/runtime:v2"} in container["env"]


@pytest.mark.cluster
def test_pull_secrets_are_those_of_the_operator_and_of_the_pods_that_it_makes(helm: Helm) -> None:
    named = ("--set", "imagePullSecrets={registry,mirror}")
    (deployment,) = [o for o in rendered(helm, *named) if o["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    (container,) = spec["containers"]
    environment = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    key = argparse.Namespace(
        token_key_file=None, operator_image=None, runtime_image=None, namespace=[], kubeconfig=None, port=0
    )
    assert settings.from_arguments(key, environment).render.image_pull_secrets == ("registry", "mirror")


@pytest.mark.cluster
def test_the_notes_name_what_is_there(helm: Helm) -> None:
    """Commands to be copied, and the objects in them."""
    where = ("--namespace", SYSTEM, *IMAGES)
    text = helm("install", RELEASE, CHART, *where, "--dry-run=client").partition("\nNOTES:\n")[2]
    (deployment,) = [o for o in rendered(helm) if o["kind"] == "Deployment"]
    (kind,) = [o for o in rendered(helm) if o["kind"] == "CustomResourceDefinition"]
    commands = re.findall(r"^    (\w+ .+)$", text, re.M) + re.findall(r"kubectl \w+ [\w.]+ [\w.]+", text)
    assert f"kubectl -n {SYSTEM} rollout status deployment/{deployment['metadata']['name']}" in commands
    assert f"kubectl delete crd {kind['metadata']['name']}" in commands
    assert "kubectl get tr -w" in commands
    assert "kubectl explain tr.spec" in text
    assert kind["spec"]["names"]["shortNames"] == ["tr"]
    files = re.findall(r"-f (\S+/\S+)", (Path(CHART) / "templates" / "NOTES.txt").read_text())  # some only for upgrades
    assert files
    assert all((ROOT / name).exists() for name in files)
    for command in commands:
        words = [word for word in command.split() if word not in ("-n", SYSTEM)]
        subprocess.run([*words[:2], "--help"], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("replica=3", "replica"),
        ("replicas=many", "replicas"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("namespaces[0]=Team_A", "namespaces"),
        ("namespaces=team-a", "namespaces"),
        ("serviceAccount.create=false", "name the account in serviceAccount.name"),
        ("serviceAccount.name=Foo_Bar", "/serviceAccount/name"),
        ("image.repository=", "name your copy of the operator's image"),
        ("runtimeImage.repository=", "name your copy of the runtime's image"),
        ("image.repository=Bad Image", "/image/repository"),
        ("image.tag=sha256:abc", "/image/tag"),
        ("imagePullSecrets[0].name=registry", "/imagePullSecrets/0"),
        ("resources.limits.memory=banana", "/resources/limits/memory"),
        ("tolerations[0].foo=bar", "/tolerations/0"),
        ("affinity.x=y", "/affinity"),
        ("tokenKey.existingSecret=no such", "/tokenKey/existingSecret"),
        (r"podLabels.app\.kubernetes\.io/name=foo", "app.kubernetes.io/name"),
    ],
)
def test_wrong_values_are_refused(helm: Helm, setting: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        rendered(helm, "--set", setting)


@pytest.mark.cluster
def test_the_token_key_stays_through_an_upgrade(helm: Helm, operator: None) -> None:
    name = f"{RELEASE}-token-key"
    before = get("secret", name, SYSTEM)
    assert before is not None
    assert len(before["data"]["key"]) >= 48
    with one_at_a_time("operator"):
        helm("upgrade", RELEASE, CHART, "--namespace", SYSTEM, "--reuse-values")
    after = get("secret", name, SYSTEM)
    assert after is not None
    assert after["data"] == before["data"]


@pytest.mark.cluster
def test_people_with_the_role_view_read_runs_and_with_edit_write_them(operator: None) -> None:
    """Kubernetes' own roles take ours in."""

    def may(role: str, verb: str, resource: str = "trainingruns.everstep.dev") -> bool:
        found = get("clusterrole", role)
        assert found is not None
        name, _, group = resource.partition(".")
        return any(
            verb in rule["verbs"] and name in rule.get("resources", []) and group in rule.get("apiGroups", [])
            for rule in found["rules"]
        )

    assert may("view", "list")
    assert not may("view", "create")
    assert may("edit", "create")
    assert may("edit", "patch", "trainingruns/scale.everstep.dev")


@pytest.mark.cluster
def test_every_field_is_explained(operator: None) -> None:
    """`kubectl explain tr.spec…`: a sentence for each, however deep."""
    crd = get("crd", "trainingruns.everstep.dev")
    assert crd is not None
    bare: list[str] = []

    def walk(schema: Object, path: str) -> None:
        for name, child in schema.get("properties", {}).items():
            if not child.get("description"):
                bare.append(f"{path}.{name}")
            walk(child, f"{path}.{name}")
        if "items" in schema:
            walk(schema["items"], path)

    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    walk(root["properties"]["spec"], "tr.spec")
    assert not bare
    text = kubectl("explain", "tr.spec.failurePolicy.maxRestarts")
    assert "DESCRIPTION" in text
    assert "restarts after failures" in text.replace("\n", " ")


def test_the_plain_manifest_is_the_chart() -> None:
    """deploy/everstep.yaml is rendered from it; `make check` compares the whole text, this only that it is complete."""
    documents = [d for d in yaml.safe_load_all((ROOT / "deploy" / "everstep.yaml").read_text()) if d]
    kinds = {d["kind"] for d in documents}
    assert {"Namespace", "CustomResourceDefinition", "Deployment", "ClusterRole", "ServiceAccount"} <= kinds
    assert "Secret" not in kinds, "a key that everybody can read is none"


@pytest.mark.cluster
def test_the_plain_manifest_is_accepted(cluster: None) -> None:
    documents = [d for d in yaml.safe_load_all((ROOT / "deploy" / "everstep.yaml").read_text()) if d]
    namespace("everstep-system")
    apply(*documents, arguments=("--dry-run=server", "--force-conflicts", "--server-side", "--validate=strict"))


def test_the_schema_knows_every_value() -> None:
    """A value that nobody may set would be a dead one, and one that the schema lacks could be misspelt."""
    values = yaml.safe_load((ROOT / "charts" / "everstep" / "values.yaml").read_text())
    schema = json.loads((ROOT / "charts" / "everstep" / "values.schema.json").read_text())
    del schema["properties"]["global"]  # Helm's own

    def compare(given: Object, known: Object, path: str) -> None:
        if "properties" not in known:  # names of the user's choice, each value of a stated type
            assert known["additionalProperties"], path
            return
        assert known["additionalProperties"] is False, path
        assert set(given) <= set(known["properties"]), path
        assert set(known["properties"]) == set(given) or not given, path
        for name, value in given.items():
            if isinstance(value, dict):
                compare(value, known["properties"][name], f"{path}.{name}")
            elif isinstance(value, list):
                assert known["properties"][name]["items"], f"{path}.{name}"

    compare(values, schema, "")
