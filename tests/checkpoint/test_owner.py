"""A prefix has one owner."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.errors import ConfigurationError
from everstep_protocol.checkpoints import Owner
from tests.checkpoint.conftest import RUN, Place, World, state

Make = Callable[..., Checkpointer]
AGAIN = replace(RUN, uid="uid-2")


@pytest.fixture
def used(place: Place, make: Make) -> Place:
    checkpointer = make(place)
    checkpointer.open()
    checkpointer.save(0, 10, state(10), None, wait=True)
    checkpointer.close()
    return place


@pytest.mark.parametrize("other", [replace(RUN, name="letters"), replace(RUN, namespace="team"), Owner("", "", "")])
def test_another_run_is_refused_and_both_are_named(used: Place, make: Make, other: Owner) -> None:
    before = used.listing()
    with pytest.raises(
        ConfigurationError, match=r"belongs to run default/digits \(uid uid-1\), and this is .*a uri of"
    ):
        make(used, run=other).open()
    assert used.listing() == before


def test_every_rank_hears_of_it(used: Place) -> None:
    with World(used, 2, run=replace(RUN, name="letters")) as world:
        for error in world.each(lambda member, rank: member.open()):
            assert isinstance(error, ConfigurationError)
            assert "belongs to run default/digits" in str(error)


def test_a_run_created_anew_continues_and_says_so(used: Place, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    restored = make(used, run=AGAIN).open()
    assert restored is not None
    assert restored.step == 10
    assert restored.info.note == "continues the checkpoints of an earlier run of this name (uid uid-1)"
    assert "continues the checkpoints" in caplog.text


def test_resume_never_starts_a_new_lineage_and_touches_nothing(
    used: Place, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(used, run=AGAIN, resume=False, keep=2)
    assert first.open() is None
    assert "starts a new lineage, as spec.checkpoint.resume is never; the 1 checkpoints" in caplog.text
    for step in (1, 2, 3):
        first.save(0, step, state(step), None, wait=True)
    first.close()
    assert "markers/000001-000-0000000010.json" in used.listing("markers/")
    assert len(used.listing("markers/")) == 3
    # After a failure of its own it does go on, from its own.
    restored = make(used, run=AGAIN, resume=False).open()
    assert restored is not None
    assert (restored.step, restored.name) == (3, "000002-000-0000000003")


def test_an_owner_that_cannot_be_read_is_explained(used: Place, make: Make) -> None:
    used.write("owner.json", b"\x80\x04.")
    with pytest.raises(ConfigurationError, match=r"owner\.json says whose checkpoints these are, but cannot be read"):
        make(used).open()
