"""NVIDIA devices."""

from typing import Any

from everstep_operator.api.accelerator import CUDA_RESOURCE
from everstep_operator.cluster.render.pool import Pool, tolerates


class CudaPool(Pool):
    def env(self, node: int) -> dict[str, str]:
        return {
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",  # images that are not NVIDIA's do not say it
            "NCCL_DEBUG": "WARN",  # its errors without it are one word
        }

    def devices(self) -> dict[str, str]:
        devices = {self.accelerator.resource or CUDA_RESOURCE: str(self.accelerator.count_here)}
        if (rdma := self.accelerator.rdma) is not None:
            devices[rdma.resource_name] = str(rdma.count)
        return devices

    def tolerations(self) -> list[dict[str, Any]]:
        return [tolerates(CUDA_RESOURCE), *super().tolerations()]
