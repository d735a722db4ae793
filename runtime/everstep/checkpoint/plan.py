"""Who writes what.

Replicated tensors are written once, each by the rank that has least to write so far. That is the rule of the planner of
torch.distributed.checkpoint; every rank can work it out for itself, so a state without sharded tensors needs neither
that package (seconds to import, in the middle of a recovery) nor the others' lists. It has to see the same tensors in
the same order for that: the ranks compare a digest before each save. A state with DTensors goes through the planner's
own code: it knows which box of a tensor each rank holds.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from everstep.checkpoint.format import Piece, Spec, StoredTensor
from everstep.checkpoint.ranks import Ranks


def shard_file(rank: int) -> str:
    return f"shard-{rank:05d}.safetensors"


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Box:
    """A part of a tensor. `offsets` is None for the whole of it."""

    name: str
    offsets: tuple[int, ...] | None
    lengths: tuple[int, ...]

    @property
    def key(self) -> str:
        return self.name if self.offsets is None else f"{self.name}@{','.join(map(str, self.offsets))}"


@dataclass(frozen=True)
class Plan:
    mine: tuple[Box, ...]  # what this rank writes
    tensors: dict[str, StoredTensor]  # where everything will be, for the index
    signature: Any  # of the state that this plan is for

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        return bool(self.signature == _signature(tensors))


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Equal on two ranks if, and only if, their shared tensors have the same names, types and shapes, in order."""
    return hashlib.sha256("\n".join(_described(tensors)).encode()).hexdigest()


def difference(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> str:
    """A sentence on the first tensor in which ranks differ. Collective; for ranks whose digests are not all equal."""
    for row in itertools.zip_longest(*ranks.exchange(_described(tensors)), fillvalue="nothing"):
        others = [rank for rank, found in enumerate(row) if found != row[0]]
        if others:
            who = f"rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
            return f"rank 0 has {row[0]} where {who} {'have' if len(others) > 1 else 'has'} {row[others[0]]}"
    return "their digests differ"


def make_plan(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> Plan:
    """Collective if the state holds DTensors, else every rank comes to the same result alone."""
    if any(_is_sharded(tensor) for tensor in tensors.values()):
        boxes = _sharded(tensors, ranks)
    else:
        boxes = _replicated(tensors, ranks.world_size)
    stored = {
        name: StoredTensor(
            Spec(tensor.dtype, tuple(tensor.shape)),
            tuple(
                Piece(shard_file(rank), box.key, box.offsets or (0,) * len(box.lengths), box.lengths)
                for box, rank in boxes[name]
            ),
        )
        for name, tensor in tensors.items()
    }
    mine = tuple(box for parts in boxes.values() for box, rank in parts if rank == ranks.rank)
    return Plan(mine, stored, _signature(tensors))


def reader(tensors: Mapping[str, torch.Tensor]) -> Callable[[Box], torch.Tensor]:
    """The values of a box that this rank holds."""

    def values(box: Box) -> torch.Tensor:
        if box.offsets is None:
            return tensors[box.name]
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.utils import find_state_dict_object

        found: torch.Tensor = find_state_dict_object(
            dict(tensors), MetadataIndex(box.name, torch.Size(box.offsets))
        ).detach()
        return found

    return values


def _replicated(tensors: Mapping[str, torch.Tensor], world_size: int) -> dict[str, list[tuple[Box, int]]]:
    load = [0] * world_size
    boxes = {}
    for name, tensor in tensors.items():
        rank = min(range(world_size), key=load.__getitem__)
        load[rank] += max(1, tensor.numel() * tensor.element_size())
        boxes[name] = [(Box(name, None, tuple(tensor.shape)), rank)]
    return boxes


def _sharded(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> dict[str, list[tuple[Box, int]]]:
    from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
    from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    mine = create_default_local_save_plan(dict(tensors), ranks.rank == 0)
    local = [
        [item.index.fqn, list(item.tensor_data.chunk.offsets), list(item.tensor_data.chunk.sizes)]
        for item in mine.items
        if item.tensor_data is not None
    ]

    def item(name: str, offsets: list[int], lengths: list[int]) -> Any:
        start = torch.Size(offsets)
        chunk = ChunkStorageMetadata(start, torch.Size(lengths))
        properties = TensorProperties(dtype=tensors[name].dtype)
        # The size that the planner balances by is that of the box.
        data = TensorWriteData(chunk, properties, chunk.sizes)
        return WriteItem(MetadataIndex(name, start), WriteItemType.SHARD, tensor_data=data)

    plans = dedup_save_plans([SavePlan([item(*about) for about in of_rank]) for of_rank in ranks.exchange(local)])
    boxes: dict[str, list[tuple[Box, int]]] = {name: [] for name in tensors}
    for rank, plan in enumerate(plans):
        for found in plan.items:
            name, chunk = found.index.fqn, found.tensor_data.chunk  # type: ignore[union-attr]
            offsets = tuple(chunk.offsets) if _is_sharded(tensors[name]) else None
            boxes[name].append((Box(name, offsets, tuple(chunk.sizes)), rank))
    return boxes


def _is_sharded(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # a DTensor, told without importing what defines it


def _described(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} ({str(dtype).removeprefix('torch.')} {list(shape)}{f' {placements}' if placements else ''})"
        for name, dtype, shape, placements in _signature(tensors)
    ]


def _signature(tensors: Mapping[str, torch.Tensor]) -> Any:
    return [(name, t.dtype, t.shape, getattr(t, "placements", None)) for name, t in tensors.items()]
