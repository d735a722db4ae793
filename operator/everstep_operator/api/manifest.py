"""Read a manifest as people write it, and say in sentences what is wrong with it."""

import difflib
import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from everstep_operator.api.model import fields_of, model_in
from everstep_operator.api.trainingrun import API_VERSION, KIND, TrainingRun

#: Of Kubernetes' ObjectMeta; what Everstep does not read is legal in a manifest all the same.
_OBJECT_META = frozenset(
    {
        *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp"),
        *("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "generateName", "managedFields"),
        *("ownerReferences", "selfLink"),
    }
)
_SHOWN_ERRORS = 10


class ManifestError(Exception):
    """The manifest cannot be used; the message says why and what to do."""


def load(path: str | Path) -> TrainingRun:
    """The TrainingRun in a YAML or JSON file.

    Raises:
        ManifestError: there is no such file, or no TrainingRun in it, or one that breaks a rule.
    """
    path = Path(path)
    return parse(_read(path), str(path))


def parse(text: str, source: str) -> TrainingRun:
    """The TrainingRun in a text; `source` names it in messages.

    Raises:
        ManifestError: as `load`.
    """
    document = _document(text, source)
    _check_kind(document, source)
    document.pop("status", None)  # as an API server does it: what `kubectl get -o yaml` wrote is a manifest, too
    errors = _unknown_metadata(document)
    try:
        run = TrainingRun.model_validate_json(json.dumps(document, allow_nan=False), by_alias=True, by_name=False)
    except ValidationError as error:
        errors += sentences(error)
    except (TypeError, ValueError) as error:
        errors.append(f"it holds a value that JSON cannot: {error}")
    if errors:
        raise ManifestError(_joined(source, errors))
    return run


def sentences(error: ValidationError) -> list[str]:
    """What is wrong with a TrainingRun, in words for people."""
    details: list[dict[str, Any]] = [dict(detail) for detail in error.errors(include_url=False)]
    # A misspelt field is missing under its right name, too: that would be the same mistake told twice.
    unknown = [detail["loc"] for detail in details if detail["type"] == "extra_forbidden"]
    misspelt = {(*path[:-1], _meant(str(path[-1]), _field_names(path[:-1]))) for path in unknown}
    return [_sentence(detail) for detail in details if detail["type"] != "missing" or detail["loc"] not in misspelt]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file{_similar_file(path)}") from None
    except IsADirectoryError:
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json"))
        hint = f", such as {path / inside[0]}" if inside else ""
        raise ManifestError(f"{path} is a folder: name the manifest itself{hint}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not a text file: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from None


def _similar_file(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


# --- YAML -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """As kubectl reads it: dates stay text, 2.0 is a whole number, and a key given twice is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            if isinstance(key.value, Hashable):
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: Any) -> float | int:
        value = super().construct_yaml_float(node)
        return int(value) if value.is_integer() and abs(value) < 2**53 else value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _document(text: str, source: str) -> dict[str, Any]:
    try:
        documents = [d for d in yaml.load_all(text, _Loader) if d is not None]  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ManifestError(f"{source} is not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ManifestError(f"{source} is no manifest: its lists or mappings are nested too deeply") from None
    if not documents:
        raise ManifestError(f"{source} is empty: a manifest begins with apiVersion: {API_VERSION}, kind: {KIND}")
    if len(documents) > 1:
        raise ManifestError(f"{source} has {len(documents)} documents: put each TrainingRun into a file of its own")
    if not isinstance(documents[0], dict):
        raise ManifestError(f"{source} is not a TrainingRun: it is {_kind_of(documents[0])}, not a mapping of fields")
    return documents[0]


def _check_kind(document: dict[str, Any], source: str) -> None:
    for field, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = document.get(field)
        if found is None:
            raise ManifestError(f"{source} is not a TrainingRun: {field} is missing; write {field}: {wanted}")
        if found != wanted:
            raise ManifestError(f"{source} is not a TrainingRun: {field} is {found}, not {wanted}")


def _unknown_metadata(document: dict[str, Any]) -> list[str]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return []  # said by the model
    return [_unknown("metadata", str(key), _OBJECT_META) for key in metadata if key not in _OBJECT_META]


# --- sentences ------------------------------------------------------------------------------------------------------


def _joined(source: str, errors: list[str]) -> str:
    if len(errors) == 1:
        return f"{source}: {errors[0]}"
    rest = [f"  … and {len(errors) - _SHOWN_ERRORS} more"] if len(errors) > _SHOWN_ERRORS else []
    return "\n".join([f"{source}:", *(f"  {error}" for error in errors[:_SHOWN_ERRORS]), *rest])


def _sentence(error: dict[str, Any]) -> str:
    """One of pydantic's errors in our words."""
    where, kind, value, context = _path(error["loc"]), error["type"], error["input"], error.get("ctx", {})
    wanted = "a time such as 2026-01-31T12:00:00Z" if kind.startswith("datetime_") else _WANTED.get(kind)
    if kind == "rule":
        return str(context["sentence"])
    if kind == "extra_forbidden":
        parent, name = error["loc"][:-1], str(error["loc"][-1])
        return _unknown(_path(parent), name, _field_names(parent))
    if kind == "missing":
        return f"{where} is missing{_what_is(error['loc'])}"
    if wanted is not None:
        way_out = _unquote(kind, value) or _way_out(error["loc"], kind, value)
        return f"{where} must be {wanted}, not {_kind_of(value)}{way_out}"
    if kind in ("literal_error", "enum"):
        cuda = ": write cuda" if where == "spec.accelerator.type" and value in ("gpu", "nvidia", "GPU") else ""
        return f"{where} must be {context['expected']}, not {_shown(value)}{cuda}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = f"at least {context['ge']:g}" if "ge" in context else f"at most {context['le']:g}"
        return f"{where} must be {bound}, not {_shown(value)}"
    if kind == "too_short":
        return f"{where} must have at least {context['min_length']} item, and has {context['actual_length']}"
    if kind == "too_long":
        return f"{where} has more than {context['max_length']} items"
    if kind == "string_too_long":
        return f"{where} is longer than {context['max_length']} characters"
    if kind == "string_too_short":
        return f"{where} must not be empty: leave it out, or give it a value"
    if kind == "quantity":
        quoted = f': write "{value}"' if isinstance(value, float) else ""
        return f'{where} must be a quantity such as 2, "500m" or 16Gi, not {_shown(value)}{quoted}'
    if kind == "string_pattern_mismatch":
        return f"{where} must match {context['pattern']}, and {_shown(value)} does not{_what_is(error['loc'])}"
    return f"{where}: {error['msg']}, not {_shown(value)}"


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "the manifest"


#: What others call it, and what pods have: where to say it here.
_ELSEWHERE = {
    "replicas": "numNodes",
    "minReplicas": "minNodes",
    "maxReplicas": "maxNodes",
    "nprocPerNode": "numProcPerNode",
    "volumes": "podTemplate.spec.volumes",
    "volumeMounts": "podTemplate.spec.containers: [{name: trainer, volumeMounts: …}]",
    "ports": "podTemplate.spec.containers: [{name: trainer, ports: …}]",
    "securityContext": "podTemplate.spec.containers: [{name: trainer, securityContext: …}]",
    "nodeSelector": "accelerator.nodeSelector",
    "tolerations": "accelerator.tolerations",
    "affinity": "podTemplate.spec.affinity",
    "runPolicy": "suspend, spec.cleanPodPolicy, spec.activeDeadlineSeconds and spec.ttlSecondsAfterFinished; its "
    "backoffLimit is spec.failurePolicy.maxRestarts",
    "backoffLimit": "failurePolicy.maxRestarts",
}


def _meant(name: str, known: frozenset[str]) -> str | None:
    if (elsewhere := _ELSEWHERE.get(name)) in known:
        return elsewhere
    near = [field for field in sorted(known) if field.lower() == name.replace("_", "").replace("-", "").lower()]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.5) or near), None)


def _unknown(parent: str, name: str, known: frozenset[str]) -> str:
    inside = f"{parent} has no field {name}" if parent != "the manifest" else f"a TrainingRun has no field {name}"
    if parent.endswith(".resources"):
        return f"{inside}: write requests: {{{name}: …}}, or limits"
    elsewhere = _ELSEWHERE.get(name)
    if elsewhere is not None and elsewhere not in known:
        return f"{inside}: write spec.{elsewhere}"
    meant = _meant(name, known)
    return f"{inside}; did you mean {meant}?" if meant else f"{inside}; it has {', '.join(sorted(known))}"


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of the object at a path of aliases."""
    model: type[BaseModel] | None = TrainingRun
    for part in location:
        if isinstance(part, int) or model is None:
            continue  # an item of the list that was named before
        field = fields_of(model).get(part)
        model = model_in(field.annotation) if field is not None else None
    return model


def _field_names(location: tuple[int | str, ...]) -> frozenset[str]:
    model = _model_at(location)
    return frozenset() if model is None else frozenset(fields_of(model))


def _what_is(location: tuple[int | str, ...]) -> str:
    parent = _model_at(location[:-1])
    field = None if parent is None else fields_of(parent).get(str(location[-1]))
    return f": {field.description}" if field is not None and field.description else ""


def _kind_of(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    if isinstance(value, bool | int | float):
        return _shown(value)
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unquote(kind: str, value: Any) -> str:
    """A number in quotes is the commonest mistake, and text without them the next."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        return ": put it in quotes"
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        quoted = kind == "bool_type" and value in ("true", "false")
    else:
        quoted = kind in ("int_type", "float_type")
    return ": remove the quotes" if quoted else ""


_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _way_out(location: tuple[int | str, ...], kind: str, value: Any) -> str:
    """What people write who know it from elsewhere: a command in one text, 10m, auto."""
    name = str(location[-1])
    if kind == "tuple_type" and isinstance(value, str):
        return f": write [{', '.join(value.split())}]"
    if name == "env" and isinstance(value, dict):
        return ": write [{name: …, value: …}]"
    if kind == "string_type" and isinstance(value, dict) and isinstance(value.get("name"), str):
        return f": write its name, {value['name']}"
    if kind in ("model_type", "model_attributes_type") and value is not None and (fields := _field_names(location)):
        return f": it has {', '.join(sorted(fields))}"
    if name == "numProcPerNode" and value in ("auto", "gpu", "cpu"):
        return ": leave it out for one rank on each device"
    duration = re.fullmatch(r"(\d+)([smhd])", value) if isinstance(value, str) else None
    if duration is not None and name.lower().endswith(("seconds", "secondsafterfinished")):
        return f": write {int(duration[1]) * _SECONDS[duration[2]]}"
    return ""
