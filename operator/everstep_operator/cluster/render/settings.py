"""What whoever installs the operator decides about all pods."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderSettings:
    operator_image: str  # of coordinators, and of what brings Everstep into other images
    runtime_image: str  # of runs that name none
    image_pull_policy: str | None = None  # of both; None: Kubernetes' own default
    image_pull_secrets: tuple[str, ...] = ()  # names of Secrets in the namespace of each run
    coordinator_port: int = 8321
    operator_namespace: str | None = None  # the only one that reaches coordinators; None: all do (it runs elsewhere)
    monitoring_namespaces: tuple[str, ...] = ()  # that read the coordinators' metrics, too
