"""The pause before a restart: none at first, growing, bounded, and the same for the same run."""

from hypothesis import given
from hypothesis import strategies as st

from everstep_protocol.backoff import Backoff, delay

backoffs = st.builds(
    Backoff, initial_seconds=st.floats(0, 100), factor=st.floats(1, 10), max_seconds=st.floats(0.1, 1000)
)


@given(backoffs, st.integers(-3, 1), st.text())
def test_first_restart_is_immediate(backoff: Backoff, restart: int, salt: str) -> None:
    assert delay(backoff, restart, salt) == 0.0


@given(backoffs, st.integers(2, 5000), st.text())
def test_bounded_and_deterministic(backoff: Backoff, restart: int, salt: str) -> None:
    seconds = delay(backoff, restart, salt)
    assert 0 <= seconds <= backoff.max_seconds * 1.2 + 1e-9
    assert seconds == delay(backoff, restart, salt)


def test_grows_by_the_factor_within_the_spread() -> None:
    for restart, plain in [(2, 1.0), (3, 2.0), (4, 4.0), (8, 64.0), (30, 300.0)]:
        assert 0.8 * plain <= delay(Backoff(), restart, "uid") <= 1.2 * plain


def test_runs_do_not_restart_in_step() -> None:
    assert len({delay(Backoff(), 5, f"uid-{run}") for run in range(50)}) > 20
