"""spec.scheduling: how the run's pods compete with those of others."""

from pydantic import Field

from everstep_operator.api.model import Model


class Scheduling(Model):
    priority_class_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="PriorityClass of all pods of the run, the coordinator included.",
    )
