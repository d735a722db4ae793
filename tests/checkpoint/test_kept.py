"""spec.checkpoint.keepEvery and keepBest: what of a run's checkpoints stays besides the newest."""

from typing import Any

import pytest

import everstep as L
from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.trainer.run import Run
from everstep_protocol import codec, env
from everstep_protocol.checkpoints import CheckpointId, Marker, Retention
from tests.checkpoint.conftest import Place
from tests.runtime.build import Net, loader, trainer

SCORES = [0.5, 0.2, 0.9, 0.3, float("nan"), 0.6]


class Scored(Net):
    """Logs one of SCORES in each validation, of which there is one in six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = list(SCORES)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def on_validation_epoch_end(self) -> None:
        assert self.trainer is not None
        if not self.trainer.sanity_checking:
            self.log("score", self.scores[self.trainer.current_epoch])


def fit(place: Place, monkeypatch: pytest.MonkeyPatch, epochs: int, every: int, **retention: Any) -> dict[int, Marker]:
    """The markers there are afterwards, by step. Without those that complete a call: they always stay."""
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    environment = Environment.read(
        {
            env.CHECKPOINT_URI: place.uri, env.CHECKPOINT_EVERY_STEPS: str(every), env.CHECKPOINT_KEEP: "2",
            env.CHECKPOINT_RETENTION: codec.dumps(Retention(**retention)).decode(),
        }
    )  # fmt: skip
    L.seed_everything(1)
    trainer(".", run=Run(environment), max_epochs=epochs).fit(Scored(), loader(), loader())  # type: ignore[arg-type]
    markers = {key: codec.loads(Marker, place.bytes(key)) for key in place.listing("markers/")}
    ids = {CheckpointId.parse(key.split("/")[1].removesuffix(".json")): marker for key, marker in markers.items()}
    return {found.step: marker for found, marker in ids.items() if found is not None and not marker.keep_forever}


def test_s50_by_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """36 steps, saved at every fourth; the end of the fit is one of the newest two."""
    assert sorted(fit(place, monkeypatch, 6, 4)) == [32]
    assert sorted(fit(Place(f"{place.uri}-2", place.environ), monkeypatch, 6, 4, every_steps=10)) == [12, 20, 32]


def test_s50_by_time(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(fit(folder, monkeypatch, 3, 3, every_seconds=10**6)) == [3, 15]


def test_s50_by_metric(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each validation makes a checkpoint due; what was saved in between has no value of its own."""
    left = fit(folder, monkeypatch, 6, 4, metric="score", best=2)
    assert {step: score(marker) for step, marker in left.items()} == {12: 0.2, 24: 0.3, 32: None}
    most = fit(Place(f"{folder.uri}-2", {}), monkeypatch, 6, 10**6, metric="score", mode="max")
    assert {step: score(marker) for step, marker in most.items()} == {18: 0.9, 30: None}, "NaN is no value"


def score(marker: Marker) -> float | None:
    return None if marker.score is None else round(marker.score, 6)


def test_s50_a_metric_that_is_never_logged(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match=r"keepBest.metric is 'scroe', which was not logged. Logged so far: score"):
        fit(folder, monkeypatch, 2, 4, metric="scroe")


def test_what_no_operator_writes() -> None:
    with pytest.raises(ConfigurationError, match="EVERSTEP_CHECKPOINT_RETENTION is not what the operator writes there"):
        Environment.read({env.CHECKPOINT_RETENTION: "7"})
