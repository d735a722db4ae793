"""The schedule is pure: its promises hold for any sizes and any sequence of worlds."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep.sampling.schedule import Micro, Shape, evaluation, schedule, share

worlds = st.integers(1, 5)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    batch, world, accumulation = draw(st.integers(1, 6)), draw(worlds), draw(st.integers(1, 4))
    return Shape(batch * world, accumulation, draw(st.integers(1, 7)))


def steps(samples: int, shape: Shape, world: int, consumed: int) -> list[list[list[Micro]]]:
    """By step, then by rank."""
    ranks = [list(schedule(samples, shape, world, rank, consumed)) for rank in range(world)]
    found: list[list[list[Micro]]] = []
    for micros in ranks:
        number, group = 0, []
        for micro in micros:
            group.append(micro)
            if micro.closes_step:
                if len(found) <= number:
                    found.append([])
                found[number].append(group)
                number, group = number + 1, []
        assert not group, "the last micro-batch closes the last step"
    return found


@given(st.integers(1, 120), shapes(), st.lists(st.tuples(worlds, st.integers(1, 4)), max_size=6), worlds)
def test_c02_every_sample_once_over_any_world_changes(
    samples: int, shape: Shape, lives: list[tuple[int, int]], last: int
) -> None:
    counted: Counter[int] = Counter()
    consumed = 0
    for world, count in [*lives, (last, samples)]:
        if consumed == samples:
            break
        for step in steps(samples, shape, world, consumed)[:count]:
            for rank in step:
                for micro in rank:
                    if micro.weight > 0:
                        counted.update(range(micro.start, micro.stop))
            consumed = step[0][-1].round_stop
    assert counted == Counter(range(samples))


@given(st.integers(1, 120), shapes(), worlds)
def test_weights_make_the_mean_over_the_round(samples: int, shape: Shape, world: int) -> None:
    """Mean over ranks of the weighted sums of micro means = mean over the round's samples, for any values."""
    for step in steps(samples, shape, world, 0):
        weight_of: Counter[int] = Counter()
        round_stops = sorted({micro.round_stop for rank in step for micro in rank})
        for rank in step:
            for micro in rank:
                for sample in range(micro.start, micro.stop):
                    weight_of[sample] += micro.weight / (micro.stop - micro.start) / world  # type: ignore[assignment]
        start = min(weight_of)
        for stop in round_stops:
            size = stop - start
            assert [weight_of[sample] for sample in range(start, stop)] == pytest.approx([1 / size] * size)
            start = stop


@given(st.integers(1, 120), shapes(), worlds)
def test_ranks_stay_in_step_within_the_users_batch_size(samples: int, shape: Shape, world: int) -> None:
    ranks = [list(schedule(samples, shape, world, rank)) for rank in range(world)]
    flags = [[(m.closes_round, m.closes_step, m.round_stop) for m in rank] for rank in ranks]
    assert all(other == flags[0] for other in flags)
    assert all(1 <= m.stop - m.start <= shape.batch_size for rank in ranks for m in rank)


@given(st.integers(1, 120), st.integers(1, 6), worlds, st.integers(1, 3))
def test_same_world_is_the_plain_split(samples: int, batch: int, world: int, accumulation: int) -> None:
    shape = Shape(batch * world, accumulation, batch)
    full = samples // shape.round_size
    for rank in range(world):
        micros = list(schedule(samples, shape, world, rank))
        assert len(micros) == -(-samples // shape.round_size)
        for number, micro in enumerate(micros[:full]):
            start = number * shape.round_size + rank * batch
            assert micro[:3] == (start, start + batch, 1.0)


@given(st.integers(1, 120), shapes(), worlds, st.data())
def test_a_resume_goes_on_with_the_same_micro_batches(
    samples: int, shape: Shape, world: int, data: st.DataObject
) -> None:
    whole = list(schedule(samples, shape, world, 0))
    boundary = data.draw(st.sampled_from([0] + [m.round_stop for m in whole if m.closes_step]))
    assert list(schedule(samples, shape, world, 0, boundary)) == [m for m in whole if m.round_stop > boundary]


@given(st.integers(0, 60), st.integers(1, 7), worlds)
def test_an_evaluation_has_each_sample_once_and_nothing_repeated(samples: int, batch: int, world: int) -> None:
    seen = Counter(
        s for rank in range(world) for m in evaluation(samples, batch, world, rank) for s in range(m.start, m.stop)
    )
    assert seen == Counter(range(samples))


@given(st.integers(0, 50), st.integers(0, 50), worlds)
def test_shares_cover_and_are_even(start: int, size: int, world: int) -> None:
    parts = [share(start, start + size, world, rank) for rank in range(world)]
    assert [x for a, b in parts for x in range(a, b)] == list(range(start, start + size))
    sizes = [b - a for a, b in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True), "rank 0 is never the one without a sample"


def test_a_position_inside_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="5 samples is no boundary of steps of 8"):
        list(schedule(100, Shape(8, 1, 4), 2, 0, 5))
