"""What all models of the API share: strict numbers, frozen objects, rules that the CRD carries as CEL."""

from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.types import Strict
from pydantic_core import PydanticCustomError

from everstep_operator.api.rules import Rule, Transition

# No "3" for 3 and no 1 for true: a manifest means here what it means to an API server.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]


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


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field of this annotation holds, also inside of a tuple or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the names that they have in a manifest."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
