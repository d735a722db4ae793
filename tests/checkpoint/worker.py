"""A rank of the tests with real processes: python -m tests.checkpoint.worker <uri> <what> <generation>."""

import os
import sys
import time

import torch
import torch.distributed as dist

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.storage import Body, open_storage
from tests.checkpoint.conftest import RUN, same, state


def sharded(step: int) -> dict[str, object]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(step)
    rows = torch.randn(7, 5, generator=generator)
    return {
        "rows": distribute_tensor(rows, mesh, [Shard(0)]),
        "columns": distribute_tensor(rows * 2, mesh, [Shard(1)]),
        "copies": distribute_tensor(rows * 3, mesh, [Replicate()]),
        "plain": rows * 4,
    }


class Stuck:
    """A storage whose data never arrives."""

    def __init__(self, uri: str) -> None:
        self._storage = open_storage(uri)
        self.uri = uri
        self.get, self.list, self.delete = self._storage.get, self._storage.list, self._storage.delete

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        if key.startswith("data/"):
            time.sleep(600)
        self._storage.put(key, body, create_only=create_only)


def main(uri: str, what: str, generation: int) -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    store = dist.distributed_c10d._get_default_store()
    storage = Stuck(uri) if what == "hang" and rank == 1 else open_storage(uri)
    checkpointer = Checkpointer(storage, rank=rank, world_size=world_size, store=store, generation=generation, run=RUN)
    restored = checkpointer.open()
    if what == "load-sharded":
        assert restored is not None
        rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(5))
        assert same(restored.shared, {"rows": rows, "columns": rows * 2, "copies": rows * 3, "plain": rows * 4})
    elif what == "save-sharded":
        for step in (4, 5):
            checkpointer.save(0, step, sharded(step), rank, wait=True)
    elif what == "load":
        assert restored is not None
        assert (restored.step, restored.name) == (20, "000001-000-0000000020")
        assert same(restored.shared, state(20))
        assert restored.rank == (rank if restored.info.world_size == world_size else None)
    else:
        assert restored is None
        for step in range(1, 21):
            # Training goes on with collectives of its own while checkpoints are written.
            checkpointer.save(0, step, state(step), rank)
            total = torch.ones(1000)
            dist.all_reduce(total)
            assert total.eq(world_size).all()
            if what == "hang" and rank == 0:
                print("saving", flush=True)
        checkpointer.wait()
    checkpointer.close()
    dist.destroy_process_group()
    os._exit(0)  # interpreters that end at the same time are not what is tested


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
