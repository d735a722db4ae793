"""What spawned ranks need to find: the classes of these tests, by their module's name."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
