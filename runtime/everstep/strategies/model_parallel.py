"""Tensor parallel + fully sharded on a mesh of ranks: `configure_model` says which layer is divided how."""

from typing import Any

import torch
from torch import nn

from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.strategies.fsdp import FSDPStrategy


class ModelParallelStrategy(FSDPStrategy):
    """The module's `configure_model` divides its layers over `self.device_mesh["tensor_parallel"]` (with torch's
    parallelize_module), and may shard some over `self.device_mesh["data_parallel"]` (fully_shard) itself; what it
    leaves whole is sharded over the latter. Ranks of one tensor-parallel group get the same batches.

    Args:
        data_parallel_size: groups; "auto": a node each. tensor_parallel_size: ranks in one; "auto": the rest.
        more: as in FSDPStrategy.
    """

    name = "model_parallel"

    def __init__(
        self, data_parallel_size: int | str = "auto", tensor_parallel_size: int | str = "auto", **more: Any
    ) -> None:
        super().__init__(**more)
        self.data_parallel_size = data_parallel_size
        self.tensor_parallel_size = tensor_parallel_size

    def connect(self, environment: Environment) -> None:
        super().connect(environment)
        if self.device_mesh is not None:
            self._data_group = self.device_mesh["data_parallel"].get_group()

    def _mesh(self, environment: Environment) -> tuple[tuple[int, ...], tuple[str, ...]]:
        world, data, tensor = environment.world_size, self.data_parallel_size, self.tensor_parallel_size
        if data == "auto":
            data = environment.num_nodes if tensor == "auto" else world // int(tensor)
        if tensor == "auto":
            tensor = world // int(data)
        if int(data) * int(tensor) != world:
            raise ConfigurationError(
                f"data_parallel_size={data} x tensor_parallel_size={tensor} is not the number of ranks, {world}: "
                'give sizes whose product it is, or "auto" for one of them'
            )
        return (int(data), int(tensor)), ("data_parallel", "tensor_parallel")

    @property
    def data_rank(self) -> int:
        return int(self.device_mesh.get_local_rank("data_parallel")) if self.device_mesh is not None else 0

    @property
    def data_world_size(self) -> int:
        return int(self.device_mesh["data_parallel"].size()) if self.device_mesh is not None else 1

    def _shard_mesh(self) -> Any:
        return self.device_mesh["data_parallel"]

    def _shard(self, module: nn.Module, root: nn.Module) -> None:
        if self.data_world_size > 1:
            super()._shard(module, root)

    def align_buffers(self, module: nn.Module) -> None:
        """Buffers of divided layers differ between the ranks of a group: each follows the first group."""
        if self.data_world_size > 1:
            source = int(torch.distributed.get_global_rank(self._data_group, 0))
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer.data, src=source, group=self._data_group)
