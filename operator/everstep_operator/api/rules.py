"""A rule about an object: the models check it in Python, the CRD carries it as CEL with the same sentence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What must hold for an object, and the sentence that says the way out when it does not.

    `message` may name values of the object in braces, in the words of the manifest: "minNodes {minNodes} is above …".
    """

    holds: Callable[[Any], bool]  # the model says yes
    cel: str  # the API server says the same about `self`
    message: str

    def sentence(self, model: Any) -> str:
        """The message about this very object."""
        return "".join(text + ("" if path is None else _show(_look_up(model, path))) for text, path in self._parts())

    def validation(self) -> dict[str, str]:
        """An entry of x-kubernetes-validations."""
        entry = {"rule": self.cel, "message": "".join(t + ("" if p is None else "…") for t, p in self._parts())}
        values = [f"self.{path}" for _, path in self._parts() if path is not None]
        if values:
            # Not string(x) + …: of that the API server cannot estimate the cost, and refuses the whole CRD.
            text = "".join(t.replace("%", "%%") + ("" if p is None else "%s") for t, p in self._parts())
            entry["messageExpression"] = f"{_quote(text)}.format([{', '.join(values)}])"
        return entry

    def _parts(self) -> Iterator[tuple[str, str | None]]:
        for text, path, _, _ in Formatter().parse(self.message):
            yield text, path


@dataclass(frozen=True)
class Transition:
    """What must hold between an object and what it is changed into. In CEL the former is `oldSelf`."""

    holds: Callable[[Any, Any], bool]  # (old, new)
    cel: str
    message: str

    def validation(self) -> dict[str, str]:
        return {"rule": self.cel, "message": self.message}


def _look_up(model: Any, path: str) -> Any:
    for name in path.split("."):
        fields = type(model).model_fields
        model = getattr(model, next(field for field, info in fields.items() if (info.alias or field) == name))
    return model


def _show(value: Any) -> str:
    """As CEL's string() prints it: whole numbers without a fraction."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
