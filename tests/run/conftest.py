"""Sessions that are ended with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.session import Session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Makes the test's one session."""
    made: list[Session] = []

    def make(*args: str, **options: object) -> Session:
        made.append(Session(tmp_path, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.end()
