"""A small check of objects against a structural schema, as an API server does it before any CEL."""

import re
from typing import Any

_PYTHON = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}

#: Every key that this check understands: one that it does not could pass unseen.
_KNOWN = {
    *("type", "description", "default", "enum", "format", "pattern", "properties", "required", "additionalProperties"),
    *("items", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
}


def errors(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """What an API server says in strict mode about types, bounds, unknown and missing fields."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, int) and not isinstance(value, bool):
            return []
        schema = schema | {"type": "string"}
    kind = schema["type"]
    if not isinstance(value, _PYTHON[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{path}: must be of type {kind}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: not one of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{path}: does not match {schema['pattern']}")
    size = value if kind in ("integer", "number") else len(value) if kind != "boolean" else 0
    for key in ("minimum", "minLength", "minItems"):
        if key in schema and size < schema[key]:
            found.append(f"{path}: below {key} {schema[key]}")
    for key in ("maximum", "maxLength", "maxItems", "maxProperties"):
        if key in schema and size > schema[key]:
            found.append(f"{path}: above {key} {schema[key]}")
    if kind == "array":
        if schema.get("x-kubernetes-list-type") == "map":
            keys = [tuple(item.get(key) for key in schema["x-kubernetes-list-map-keys"]) for item in value]
            found += [f"{path}: duplicate {key}" for key in set(keys) if keys.count(key) > 1]
        for index, item in enumerate(value):
            found += errors(schema["items"], item, f"{path}[{index}]")
    if kind == "object" and "properties" in schema:
        found += [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        found += [f"{path}.{name}: unknown field" for name in value if name not in schema["properties"]]
        for name, child in schema["properties"].items():
            if name in value:
                found += errors(child, value[name], f"{path}.{name}")
    elif kind == "object" and "additionalProperties" in schema:
        for name, item in value.items():
            found += errors(schema["additionalProperties"], item, f"{path}.{name}")
    return found


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """The value as an API server stores it: defaults apply inside of objects that are there or have a default."""
    kind = schema.get("type")
    if kind == "object" and "properties" in schema and isinstance(value, dict):
        result = dict(value)
        for name, child in schema["properties"].items():
            if name not in result and "default" in child:
                result[name] = child["default"]
            if name in result:
                result[name] = defaulted(child, result[name])
        return result
    if kind == "array" and isinstance(value, list):
        return [defaulted(schema["items"], item) for item in value]
    return value


def nodes(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema inside of this one, with its path."""
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += nodes(child, f"{path}.{name}")
    if "items" in schema:
        found += nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        found += nodes(schema["additionalProperties"], f"{path}{{}}")
    return found


def unknown_keys(schema: dict[str, Any]) -> set[str]:
    return {key for _, node in nodes(schema) for key in node} - _KNOWN
