"""Which checkpoints stay, for any history."""

from hypothesis import given
from hypothesis import strategies as st

from everstep.checkpoint.retention import orphans, superseded
from everstep_protocol.checkpoints import CheckpointId

ids = st.builds(CheckpointId, st.integers(1, 4), st.integers(0, 2), st.integers(0, 5))


@given(st.sets(ids), st.integers(1, 5), st.integers(1, 4), st.data())
def test_superseded(checkpoints: set[CheckpointId], generation: int, keep: int, data: st.DataObject) -> None:
    older = sorted(c for c in checkpoints if c.generation < generation)
    resumed_from = data.draw(st.sampled_from([None, *older]))
    forever = data.draw(st.sets(st.sampled_from(sorted(checkpoints)))) if checkpoints else set()
    gone = superseded(checkpoints, generation=generation, resumed_from=resumed_from, keep=keep, forever=forever)
    left = checkpoints - set(gone)
    assert set(gone) <= checkpoints - forever
    assert len(left) >= min(len(checkpoints), max(keep, 2))
    mine = sorted(c for c in checkpoints if c.generation >= generation or (resumed_from and c <= resumed_from))
    assert set(mine[-max(keep, 2) :]) <= left, "the newest of the lineage stay"
    assert len(left - forever) <= max(keep, 2)


@given(st.sets(ids), st.sets(ids), st.integers(1, 5))
def test_orphans(data: set[CheckpointId], markers: set[CheckpointId], generation: int) -> None:
    found = orphans([*(i.name for i in data), "x", "1-2"], markers, generation=generation)
    assert found == sorted(i for i in data - markers if i.generation < generation)
