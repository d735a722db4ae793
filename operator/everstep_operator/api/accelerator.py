"""spec.accelerator: what the ranks compute on."""

from typing import Literal

from pydantic import Field

from everstep_operator.api.model import Model


class Accelerator(Model):
    type: Literal["cpu"] = Field(default="cpu", description="What the ranks compute on.")
