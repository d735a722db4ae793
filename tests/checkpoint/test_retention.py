"""Which checkpoints stay, for any history."""

from hypothesis import given
from hypothesis import strategies as st

from everstep.checkpoint.retention import milestones, orphans, superseded
from everstep_protocol.checkpoints import CheckpointId, Marker, Retention

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


def marked(*about: tuple[int, float, float | None]) -> dict[CheckpointId, Marker]:
    """Of (step, time, score)."""
    return {
        CheckpointId(1, 0, step): Marker(1, 1, 0, step, None, 1, (), time, score=score) for step, time, score in about
    }


def steps(found: set[CheckpointId]) -> list[int]:
    return sorted(checkpoint.step for checkpoint in found)


def test_milestones() -> None:
    """By step, by time, by the metric; one of a step that is no multiple stands for the one that it is after."""
    markers = marked((40, 0, 0.5), (90, 10, None), (110, 25, 0.2), (150, 30, 0.4), (200, 59, 0.3), (290, 61, 0.9))
    assert steps(milestones(markers, Retention())) == []
    assert steps(milestones(markers, Retention(every_steps=100))) == [110, 200]
    assert steps(milestones(markers, Retention(every_seconds=30))) == [40, 150, 290]
    assert steps(milestones(markers, Retention(metric="val_loss"))) == [110]
    assert steps(milestones(markers, Retention(metric="acc", mode="max", best=2))) == [40, 290]
    assert steps(milestones(markers, Retention(every_steps=200, metric="val_loss", best=2))) == [110, 200]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), max_size=20, unique=True), st.integers(2, 9))
def test_milestones_stay(saves: list[tuple[int, int]], every: int) -> None:
    """Pruning after each save comes to what one look at the end comes to: nothing stays that a later look drops."""
    retention = Retention(every_steps=every, every_seconds=every)
    numbers, times = sorted(step for step, _ in saves), sorted(time for _, time in saves)
    order = [(step, float(time), None) for step, time in zip(numbers, times, strict=True)]
    left: dict[CheckpointId, Marker] = {}
    for save in order:
        left |= marked(save)
        stay = milestones(left, retention)
        gone = superseded(left, generation=1, resumed_from=None, keep=2, forever=stay)
        left = {checkpoint: marker for checkpoint, marker in left.items() if checkpoint not in gone}
    assert milestones(marked(*order), retention) <= left.keys()


@given(st.sets(ids), st.sets(ids), st.integers(1, 5))
def test_orphans(data: set[CheckpointId], markers: set[CheckpointId], generation: int) -> None:
    found = orphans([*(i.name for i in data), "x", "1-2"], markers, generation=generation)
    assert found == sorted(i for i in data - markers if i.generation < generation)
