"""Names of checkpoints: they sort as resumes try them, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep_protocol.checkpoints import CheckpointId, newest_first

ids = st.builds(CheckpointId, st.integers(0, 10**7), st.integers(0, 10**4), st.integers(0, 10**12))


def test_names() -> None:
    saved = CheckpointId(generation=3, call=1, step=120)
    assert saved.name == "000003-001-0000000120"
    assert saved.marker_key == "markers/000003-001-0000000120.json"
    assert saved.data_prefix == "data/000003-001-0000000120/"


@given(ids)
def test_a_name_is_read_back(saved: CheckpointId) -> None:
    assert CheckpointId.parse(saved.name) == saved


@pytest.mark.parametrize(
    "name",
    ["", "3-1-120", "000003-001-0000000120.json", "000003-001", "x00003-001-0000000120", "000003-001-0000000120-1"],
)
def test_other_names_are_none(name: str) -> None:
    assert CheckpointId.parse(name) is None


@given(st.lists(ids, unique=True))
def test_newest_first(saved: list[CheckpointId]) -> None:
    keys = [one.marker_key for one in saved] + ["markers/", "markers/README", "owner.json"]
    assert newest_first(keys) == sorted(saved, reverse=True)


def test_a_later_generation_wins_over_a_later_step() -> None:
    """After a roll-back to step 100, generation 2 goes on from there: what generation 1 had at 150 is abandoned."""
    abandoned, current, end = CheckpointId(1, 0, 150), CheckpointId(2, 0, 110), CheckpointId(2, 1, 110)
    keys = [one.marker_key for one in (end, abandoned, current)]
    assert newest_first(keys) == [end, current, abandoned]
