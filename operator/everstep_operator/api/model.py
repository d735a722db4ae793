"""What all models of the API share: strict numbers, frozen objects, rules that the CRD carries as CEL."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.types import Strict
from pydantic_core import PydanticCustomError

from everstep_operator.api.rules import Rule, Transition

# No "3" for 3 and no 1 for true: a manifest means here what it means to an API server.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]

Text = Annotated[str, StringConstraints(min_length=1, max_length=1_024)]
#: Of a Kubernetes object, a key in it, or an extended resource with its domain.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$")
]
Labels = dict[str, Annotated[str, StringConstraints(max_length=4_096)]]  # or annotations, or a node selector

_QUANTITY = r"^[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i|e[0-9]+)?$"


def _quantity(value: Any) -> str:
    """A number stands for itself; as an API server, no fractions without quotes."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > 64 or re.match(_QUANTITY, value) is None:
        raise PydanticCustomError("quantity", "no quantity")
    return value


#: 1, "500m", 16Gi.
Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": _QUANTITY, "maxLength": 64}),
]


class Model(BaseModel):
    """Frozen, camelCase outside and snake_case inside, no unknown fields, and the rules of its class hold."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        ser_json_inf_nan="null",
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()
    TRANSITIONS: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        broken = [rule.sentence(self) for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise PydanticCustomError("rule", "{sentence}", {"sentence": "; ".join(broken)})
        return self


def each_once(where: str, names: Iterable[str]) -> None:
    """In the CRD this is the list type `map`."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        sentence = f"{where} has {', '.join(twice)} more than once: keep one"
        raise PydanticCustomError("rule", "{sentence}", {"sentence": sentence})


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field of this annotation holds, also inside of a tuple or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the names that they have in a manifest."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
