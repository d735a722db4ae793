"""The nodes that workers run on, and what a pod says to get there and to use what is in them."""

from typing import Any

from everstep_operator.api.trainingrun import TrainingRun


class Pool:
    """CPUs: nothing but what the manifest says. Others override what is particular to them."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.accelerator = run.spec.accelerator

    def env(self, node: int) -> dict[str, str]:
        """Variables of the pod for this node index."""
        return {}

    def devices(self) -> dict[str, str]:
        """Extended resources of each pod."""
        return {}

    def labels(self, node: int) -> dict[str, str]:
        return {}

    def node_selector(self) -> dict[str, str]:
        return dict(self.accelerator.node_selector)

    def tolerations(self) -> list[dict[str, Any]]:
        return [taint.model_dump(mode="json", exclude_none=True) for taint in self.accelerator.tolerations]

    def affinity(self, node: int) -> dict[str, list[dict[str, Any]]]:
        """Terms of podAffinity and podAntiAffinity that have to hold."""
        return {}


def tolerates(resource: str) -> dict[str, Any]:
    """Clouds keep other pods off such nodes by a taint of the resource's name."""
    return {"key": resource, "operator": "Exists", "effect": "NoSchedule"}
