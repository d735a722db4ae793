from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.harness import Bench, bench


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Bench]:
    """A folder for scripts, and launchers that do not outlive the test."""
    with bench(tmp_path) as made:
        yield made
