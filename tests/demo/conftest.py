"""Trainings that are ended with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo.training import Training


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Makes the test's one training."""
    made: list[Training] = []

    def make(*args: str, **options: object) -> Training:
        made.append(Training(tmp_path, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Final weights of linear.py on two ranks, if nothing happens to it."""
    training = Training(tmp_path_factory.mktemp("undisturbed"), nodes=2)
    try:
        code, out = training.run()
        assert code == 0, out
        return training.weights()
    finally:
        training.end()
