"""The CustomResourceDefinition, generated from the models.

python -m everstep_operator.api.crd            write crds/everstep.dev_trainingruns.yaml
python -m everstep_operator.api.crd --check    exit 1 if the file is not what the models say
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from everstep_operator.api.model import Model, fields_of, model_in
from everstep_operator.api.rules import Rule, Transition
from everstep_operator.api.trainingrun import GROUP, KIND, VERSION, TrainingRun

PLURAL = "trainingruns"
FILE = Path(__file__).parents[3] / "crds" / f"{GROUP}_{PLURAL}.yaml"

_HEADER = "# Generated from operator/everstep_operator/api/ by `make generate`. Do not edit.\n"

#: What JSON schema and the structural schemas of Kubernetes have in common. Keys of other names are refused.
_COPIED = (
    *("type", "format", "description", "enum", "default", "pattern", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", "maxProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
)
_DROPPED = {"title", "const", "additionalProperties", "properties", "required", "items", "anyOf", "$ref"}


def crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tr"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.numNodes",
                            "statusReplicasPath": ".status.nodes.ready",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": list(_columns()),
                }
            ],
        },
    }


def _columns() -> Iterator[dict[str, Any]]:
    """What `kubectl get` prints; priority 1: only with -o wide."""
    for name, type_, path, priority in (
        ("Phase", "string", ".status.phase", 0),
        ("Nodes", "integer", ".status.nodes.ready", 0),
        ("Step", "integer", ".status.progress.step", 0),
        ("Progress", "string", ".status.progress.percent", 0),
        ("Loss", "number", ".status.progress.loss", 0),
        ("Goodput", "number", ".status.goodput.ratio", 0),
        ("Restarts", "integer", ".status.restarts.total", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
        ("Reason", "string", ".status.reason", 1),
        ("LastCheckpoint", "string", ".status.lastCheckpoint.uri", 1),
        ("ETA", "string", ".status.progress.eta", 1),  # a `date` would be shown as an age
    ):
        yield {"name": name, "type": type_, "jsonPath": path} | ({"priority": priority} if priority else {})


def schema() -> dict[str, Any]:
    """The structural schema of a TrainingRun."""
    whole = TrainingRun.model_json_schema(by_alias=True, mode="validation")
    result = _structural(whole, whole["$defs"], TrainingRun)
    properties = result["properties"]
    # The API server's own business; it refuses a closer description.
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    properties["status"].pop("default", None)  # written by the operator, never invented by the API server
    result["required"] = ["spec"]
    return result


def _structural(node: dict[str, Any], definitions: dict[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """A JSON schema without references, unions and titles, with the CEL rules of the models."""
    node = _resolved(node, definitions)
    if unknown := set(node) - set(_COPIED) - _DROPPED - {"$defs"}:
        raise ValueError(f"no structural schema for {sorted(unknown)} in {node.get('description', node)}")
    result = {key: node[key] for key in _COPIED if node.get(key) is not None}
    if "const" in node:  # a Literal of one value
        result["enum"] = [node["const"]]
    if "properties" in node:
        fields = {} if model is None else fields_of(model)
        result["properties"] = {
            name: _structural(child, definitions, model_in(fields[name].annotation) if name in fields else None)
            for name, child in node["properties"].items()
        }
        if "required" in node:
            result["required"] = node["required"]
        if "default" in result:
            result["default"] = {}  # the fields have theirs; without this one they would not apply
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions, None)
    if "items" in node:
        result["items"] = _structural(node["items"], definitions, model)
        if result.get("default") == ():
            result["default"] = []
    if model is not None and issubclass(model, Model) and "properties" in node:
        rules: tuple[Rule | Transition, ...] = (*model.RULES, *model.TRANSITIONS)
        if rules:
            result["x-kubernetes-validations"] = [rule.validation() for rule in rules]
    return result


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; of "this or null" take this. What is said at the place of use wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _resolved(target | {key: value for key, value in node.items() if key != "$ref"}, definitions)
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a structural schema has no union types: {node}")
        return _resolved(options[0] | {key: value for key, value in node.items() if key != "anyOf"}, definitions)
    return node


def render() -> str:
    """The text of the file."""
    return _HEADER + yaml.safe_dump(crd(), sort_keys=False, width=120, allow_unicode=True)


def main(arguments: Sequence[str], file: Path = FILE) -> int:
    """Write the file, or with --check compare it. Returns the exit status."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python -m everstep_operator.api.crd [--check]", file=sys.stderr)
        return 2
    text = render()
    if not arguments:
        file.write_text(text, encoding="utf-8")
        return 0
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return 0
    print(f"{file} is not what the models say: run `make generate` and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
