"""TPU slices on GKE. The unit is a slice: `hosts` pods with neighbouring node indices, all in one node pool."""

from typing import Any

from everstep_operator.api.accelerator import TPU_RESOURCE, Tpu
from everstep_operator.cluster.render.names import worker_hostname, workers_service_name
from everstep_operator.cluster.render.pool import Pool, tolerates
from everstep_operator.plan.pods import prefix

ACCELERATOR_LABEL = "cloud.google.com/gke-tpu-accelerator"
TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
NODE_POOL_LABEL = "cloud.google.com/gke-nodepool"

#: On worker pods: which slice of which run. Read by the affinity below.
SLICE_LABEL = "everstep.dev/tpu-slice"


class TpuPool(Pool):
    @property
    def tpu(self) -> Tpu:
        assert self.accelerator.tpu is not None  # a rule of the API
        return self.accelerator.tpu

    def env(self, node: int) -> dict[str, str]:
        """Worker numbers and names: GKE sets them for Indexed Jobs and JobSets only."""
        slice_id, worker = divmod(node, self.tpu.hosts)
        first = slice_id * self.tpu.hosts
        names = [self._name(other) for other in range(first, first + self.tpu.hosts)]
        variables = {"PJRT_DEVICE": "TPU", "TPU_WORKER_ID": str(worker), "TPU_WORKER_HOSTNAMES": ",".join(names)}
        slices = self.run.spec.num_nodes // self.tpu.hosts
        if slices > 1:
            variables |= {
                "MEGASCALE_COORDINATOR_ADDRESS": self._name(0),
                "MEGASCALE_NUM_SLICES": str(slices),
                "MEGASCALE_SLICE_ID": str(slice_id),
            }
        return variables

    def _name(self, node: int) -> str:
        return f"{worker_hostname(node)}.{workers_service_name(self.run)}"

    def devices(self) -> dict[str, str]:
        return {TPU_RESOURCE: str(self.tpu.chips_here)}

    def labels(self, node: int) -> dict[str, str]:
        return {SLICE_LABEL: self._slice(node)}

    def _slice(self, node: int) -> str:
        return f"{prefix(self.run)}-{node // self.tpu.hosts}"

    def node_selector(self) -> dict[str, str]:
        return {
            **super().node_selector(),
            ACCELERATOR_LABEL: self.tpu.accelerator,
            TOPOLOGY_LABEL: self.tpu.topology,
        }

    def tolerations(self) -> list[dict[str, Any]]:
        return [tolerates(TPU_RESOURCE), *super().tolerations()]

    def affinity(self, node: int) -> dict[str, list[dict[str, Any]]]:
        """All pods of a slice in one node pool, and nobody else's there: its chips are wired to each other."""
        if self.tpu.hosts == 1:
            return {}
        mine = self._slice(node)
        others = [
            {"key": SLICE_LABEL, "operator": "Exists"},
            {"key": SLICE_LABEL, "operator": "NotIn", "values": [mine]},
        ]
        return {
            "podAffinity": [_in_one_pool({"labelSelector": {"matchLabels": {SLICE_LABEL: mine}}})],
            "podAntiAffinity": [_in_one_pool({"labelSelector": {"matchExpressions": others}, "namespaceSelector": {}})],
        }


def _in_one_pool(term: dict[str, Any]) -> dict[str, Any]:
    return {**term, "topologyKey": NODE_POOL_LABEL}
