"""The table of objects against the models, the CRD's schema, and a real API server where KUBECONFIG names one."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from everstep_operator.api import crd
from everstep_operator.api.manifest import ManifestError, parse
from everstep_operator.api.model import Model, fields_of, model_in
from everstep_operator.api.trainingrun import Spec, Status, TrainingRun, refused_changes
from tests.api.objects import CASES, FULL, FULL_TPU, Case, run
from tests.api.structural import defaulted, errors, nodes, unknown_keys

OBJECTS = [case for case in CASES if case.changed is None]
CHANGES = [case for case in CASES if case.changed is not None]


def by_name(case: Case) -> str:
    return case.name.replace(" ", "-")


def read(document: dict[str, Any]) -> TrainingRun:
    return parse(yaml.safe_dump(document), "manifest.yaml")


# --- the models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OBJECTS, ids=by_name)
def test_models(case: Case) -> None:
    if case.refused is None:
        read(case.object)
        return
    with pytest.raises(ManifestError) as refusal:
        read(case.object)
    assert case.refused in str(refusal.value)
    assert str(refusal.value).count("manifest.yaml") == 1


@pytest.mark.parametrize("case", CHANGES, ids=by_name)
def test_models_judge_changes(case: Case) -> None:
    assert case.changed is not None
    before = read(case.object).model_copy(update={"status": Status.model_validate(case.object.get("status", {}))})
    sentences = refused_changes(before, read(case.changed))
    if case.refused is None:
        assert sentences == []
    else:
        (sentence,) = sentences  # one way out, not two that lead to different places
        assert case.refused in sentence


def test_each_rule_has_a_case_that_breaks_it() -> None:
    broken = " ".join(case.refused or "" for case in CASES)
    for model in models():
        for rule in (*model.RULES, *model.TRANSITIONS):
            words = [part for part in rule.message.replace("{", "}").split("}") if len(part) > 8]
            assert any(word[:20].strip() in broken for word in words), rule.message


def models(root: type = TrainingRun) -> Iterator[type[Model]]:
    yield root
    for field in fields_of(root).values():
        child = model_in(field.annotation)
        if child is not None and issubclass(child, Model):
            yield from models(child)


# --- the CRD --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OBJECTS, ids=by_name)
def test_schema(case: Case) -> None:
    said = errors(crd.schema(), case.object)
    if case.by in ("schema", "unknown"):
        assert said
        assert case.by == "schema" or all("unknown field" in sentence for sentence in said)
    else:
        assert said == []  # what CEL refuses is well formed


@pytest.mark.parametrize("case", [c for c in OBJECTS if c.refused is None], ids=by_name)
def test_defaults_of_the_schema_are_those_of_the_models(case: Case) -> None:
    stored = defaulted(crd.schema(), case.object)
    from_server = TrainingRun.model_validate(stored)
    assert from_server.spec == read(case.object).spec
    assert json.loads(from_server.spec.model_dump_json(exclude_none=True)) == stored["spec"]


def test_schema_is_structural() -> None:
    schema = crd.schema()
    assert unknown_keys(schema) == set()
    for path, node in nodes(schema):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert "description" in node or path in ("", ".apiVersion", ".kind", ".metadata") or path[-1] in "]}", path
        if path.startswith(".spec"):  # CEL's cost is estimated from these
            kind = node.get("type", "string")
            assert kind != "string" or {"maxLength", "enum"} & set(node), path
            assert kind != "array" or "maxItems" in node, path
            assert kind != "object" or "properties" in node or "maxProperties" in node, path


def test_each_default_below_a_parent_applies() -> None:
    """An API server fills in nothing below a parent that is absent: each parent with a default says so."""

    def walk(model: type[Model], schema: dict[str, Any]) -> None:
        for name, field in fields_of(model).items():
            node = schema["properties"][name]
            assert "default" in node or not isinstance(field.default, Model), f"{model.__name__}.{name}"
            child = model_in(field.annotation)
            if child is not None and issubclass(child, Model):
                walk(child, node.get("items", node))

    walk(Spec, crd.schema()["properties"]["spec"])


def test_full_examples_use_every_field_of_spec() -> None:
    """So that a new field cannot be left out of the table."""
    used = set()

    def walk(schema: dict[str, Any], value: Any, path: str) -> None:
        used.add(path)
        if isinstance(value, dict) and "properties" in schema:
            for name, child in value.items():
                walk(schema["properties"][name], child, f"{path}.{name}")
        elif isinstance(value, dict) and "additionalProperties" in schema:
            for child in value.values():
                walk(schema["additionalProperties"], child, f"{path}{{}}")
        elif isinstance(value, list):
            for child in value:
                walk(schema["items"], child, f"{path}[]")

    schema = crd.schema()["properties"]["spec"]
    for full in (FULL, FULL_TPU):
        walk(schema, full["spec"], "")
    assert {path for path, _ in nodes(schema)} == used


def test_generated_file_is_fresh() -> None:
    assert crd.FILE.read_text(encoding="utf-8") == crd.render()
    assert crd.main(["--check"]) == 0


def test_check_names_a_stale_file(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "crd.yaml"
    assert crd.main(["--check"], stale) == 1
    assert "make generate" in capsys.readouterr().err
    assert crd.main([], stale) == 0
    assert crd.main(["--check"], stale) == 0


# --- a real API server ----------------------------------------------------------------------------------------------


#: A group and a namespace of their own: the cluster may hold runs that are alive, of another version of the CRD.
TEST_GROUP = "objects.everstep.dev"
NAMESPACE = "everstep-objects"
RESOURCE = f"{crd.PLURAL}.{TEST_GROUP}"


def kubectl(*arguments: str, document: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    text = None if document is None else json.dumps(document).replace("everstep.dev/v1alpha1", f"{TEST_GROUP}/v1alpha1")
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    if not os.environ.get("KUBECONFIG") or shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, and KUBECONFIG for an API server on which CRDs may be created")
    definition = crd.crd()
    name = definition["metadata"]["name"] = f"{crd.PLURAL}.{TEST_GROUP}"
    definition["spec"]["group"] = TEST_GROUP
    definition["spec"]["names"].pop("shortNames")  # `kubectl get tr` is somebody else's
    installed = kubectl("apply", "--server-side", "-f", "-", document=definition)
    assert installed.returncode == 0, installed.stderr
    kubectl("create", "namespace", NAMESPACE)
    ready = kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{name}")
    assert ready.returncode == 0, ready.stderr
    for _ in range(30):  # the schema is published a moment after the condition
        if kubectl("create", "--dry-run=server", "-f", "-", document=run()).returncode == 0:
            break
    yield
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    kubectl("delete", "crd", name)


@pytest.mark.cluster
def test_real_api_server_agrees_with_the_table(server: None) -> None:
    """All cases in one test: one server, one list of disagreements."""
    disagreements = []
    for case in OBJECTS:
        said = kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", document=case.object)
        if (said.returncode == 0) != (case.refused is None):
            disagreements.append(f"{case.name}: {said.stderr or 'accepted'}")
        elif case.by == "cel" and case.refused is not None and case.refused not in said.stderr:
            disagreements.append(f"{case.name}: other words: {said.stderr}")
    for case in CHANGES:
        assert kubectl("create", "-f", "-", document=case.object).returncode == 0, case.name
        if "status" in case.object:  # nobody creates one
            status = json.dumps({"status": case.object["status"]})
            said = kubectl("patch", RESOURCE, "run", "--subresource=status", "--type=merge", "-p", status)
            assert said.returncode == 0, said.stderr
        said = kubectl("replace", "--dry-run=server", "-f", "-", document=case.changed)
        if (said.returncode == 0) != (case.refused is None) or (case.refused or "") not in said.stderr:
            disagreements.append(f"{case.name}: {said.stderr or 'accepted'}")
        kubectl("delete", RESOURCE, "run", "--wait=true")
    assert disagreements == []


@pytest.mark.cluster
def test_real_api_server_stores_what_the_models_read(server: None) -> None:
    created = kubectl("create", "-o", "json", "-f", "-", document=run())
    assert created.returncode == 0, created.stderr
    try:
        stored = TrainingRun.model_validate_json(created.stdout.replace(TEST_GROUP, "everstep.dev"))
        assert stored.spec == read(run()).spec
        assert kubectl("get", RESOURCE).stdout.split()[:8] == [
            *("NAME", "PHASE", "NODES", "STEP", "PROGRESS", "LOSS", "GOODPUT", "RESTARTS")
        ]
        scaled = kubectl("get", "--raw", f"/apis/{TEST_GROUP}/v1alpha1/namespaces/{NAMESPACE}/{crd.PLURAL}/run/scale")
        assert json.loads(scaled.stdout)["spec"]["replicas"] == 1
    finally:
        kubectl("delete", RESOURCE, "run")
