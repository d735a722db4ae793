"""Who writes what: as the planner of torch.distributed.checkpoint decides, without importing it in training."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.checkpoint.plan import make_plan
from everstep.checkpoint.ranks import Ranks

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=12)


@settings(max_examples=50)
@given(shapes, st.integers(1, 5))
def test_replicated_tensors_are_split_as_the_planner_of_torch_would(
    shapes: list[tuple[int, ...]], world_size: int
) -> None:
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    tensors = {f"t{n}": torch.zeros(shape) for n, shape in enumerate(shapes)}
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(tensors, is_coordinator=True)
    theirs, metadata = planner.create_global_plan([planner.create_local_plan() for _ in range(world_size)])
    assert set(metadata.state_dict_metadata) == set(tensors)
    sizes = [math.prod(shape) * 4 for shape in shapes]
    loads = [sum(item.tensor_storage_size() or 0 for item in plan.items) for plan in theirs]
    ours = [0] * world_size
    owners: dict[str, int] = {}
    for rank in range(world_size):
        store = torch.distributed.HashStore()
        plan = make_plan(tensors, Ranks(rank, world_size, store, 1))
        for box in plan.mine:
            assert owners.setdefault(box.name, rank) == rank, "written twice"
            ours[rank] += math.prod(box.lengths) * 4
        assert plan.fits(tensors)
    assert set(owners) == set(tensors)
    assert sum(ours) == sum(loads) == sum(sizes)
    assert max(ours) - min(ours) <= max(sizes)
    assert {item.index.fqn: rank for rank, plan in enumerate(theirs) for item in plan.items} == owners


def test_all_ranks_agree_on_where_things_are() -> None:
    tensors = {f"t{n}": torch.zeros(n + 1, 3) for n in range(7)}
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(3) as pool:
        plans = list(pool.map(lambda rank: make_plan(tensors, Ranks(rank, 3, store, 1)), range(3)))
    assert plans[0].tensors == plans[1].tensors == plans[2].tensors


@pytest.mark.parametrize(
    "other",
    [{"a": torch.zeros(3)}, {"a": torch.zeros(2, dtype=torch.int32)}, {"b": torch.zeros(2)}, {}],
)
def test_a_plan_fits_only_the_state_it_was_made_for(other: dict[str, torch.Tensor]) -> None:
    plan = make_plan({"a": torch.zeros(2)}, Ranks(0, 1, None, 1))
    assert plan.fits({"a": torch.ones(2)})
    assert not plan.fits(other)
