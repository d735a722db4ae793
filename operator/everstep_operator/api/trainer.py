"""spec.trainer: what each rank runs, and the container that it runs in."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from everstep_operator.api.model import Model
from everstep_operator.api.rules import Rule
from everstep_protocol import env as protocol_env

#: Set by everstep itself in every pod, so nobody else may.
OWN_VARIABLES = tuple(sorted(v for k, v in vars(protocol_env).items() if k.isupper() and isinstance(v, str)))


class EnvVar(Model):
    name: str = Field(
        min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", description="Name of the variable."
    )
    value: str = Field(default="", max_length=32_768, description="Its value.")

    RULES = (
        Rule(
            lambda e: e.name not in OWN_VARIABLES,
            f"!(self.name in [{', '.join(repr(name) for name in OWN_VARIABLES)}])",
            "trainer.env: {name} is set by Everstep itself: remove it from env",
        ),
    )


Argument = Annotated[str, StringConstraints(max_length=8_192)]


class Trainer(Model):
    command: tuple[Argument, ...] = Field(
        min_length=1,
        max_length=64,
        description="What each rank executes, without a shell; [python, train.py] runs under everstep launch.",
    )
    args: tuple[Argument, ...] = Field(default=(), max_length=512, description="Arguments, appended to the command.")
    env: tuple[EnvVar, ...] = Field(
        default=(),
        max_length=256,
        description="Environment variables of the ranks, beside those of Everstep and torchrun.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    working_dir: str | None = Field(
        default=None,
        min_length=1,
        max_length=4_096,
        description="Folder in which the command starts.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        """In the CRD this is the list type `map`."""
        names = [variable.name for variable in self.env]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            sentence = f"trainer.env has {', '.join(twice)} more than once: keep one"
            raise PydanticCustomError("rule", "{sentence}", {"sentence": sentence})
        return self
