"""spec.podTemplate: anything else that a pod can say."""

from typing import Any

from pydantic import Field

from everstep_operator.api.model import Labels, Model


class PodTemplateMetadata(Model):
    labels: Labels = Field(default={}, max_length=64, description="More labels of the worker pods.")
    annotations: Labels = Field(default={}, max_length=64, description="Annotations of the worker pods.")


class PodTemplate(Model):
    """Its spec is not checked here: a full PodSpec schema is larger than what kubectl can apply."""

    metadata: PodTemplateMetadata = Field(
        default=PodTemplateMetadata(), description="Labels and annotations of the worker pods."
    )
    spec: dict[str, Any] = Field(
        default={},
        max_length=64,
        description="A PodSpec, merged over that of the workers as kubectl patch does; their container is `trainer`.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
