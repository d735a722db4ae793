from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everstep_operator.api.trainingrun import TrainingRun
from everstep_protocol.messages import Goodput, Progress, Report, RunState
from tests.plan.builders import (
    T0,
    all_pods,
    at,
    checkpoint,
    created_places,
    failure,
    plan,
    progress,
    report,
    running,
    then,
)


def test_numbers_of_the_report() -> None:
    said = report(
        generation=3,
        world_size=2,
        progress=Progress(step=41, max_steps=100, epoch=2, loss=0.1234567891, samples_per_second=99.99999, stage="fit"),
        last_checkpoint=checkpoint(40),
        resumed_from=checkpoint(20, note="step 30: shard 1 truncated; fell back"),
        goodput=Goodput(10, 8, waiting=0.2, startup=0.3, lost={"Killed": 1.5}),
    )
    status = plan(running(), all_pods(), said, 50).status
    assert (status.generation, status.world_size) == (3, 2)
    assert (status.nodes.desired, status.nodes.ready) == (2, 2)
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent, status.progress.epoch) == (41, 41, 2)
    assert (status.progress.loss, status.progress.samples_per_second) == (0.123457, 100.0)
    assert status.progress.updated_at == at(50)
    assert status.last_checkpoint is not None
    assert (status.last_checkpoint.step, status.last_checkpoint.time) == (40, T0)
    assert status.resumed_from is not None
    assert (status.resumed_from.step, status.resumed_from.note[:8]) == (20, "step 30:")
    assert status.goodput is not None
    assert (status.goodput.ratio, status.goodput.lost_seconds) == (0.8, {"Killed": 1.5})
    assert (status.goodput.productive_seconds, status.goodput.waiting_seconds) == (8, 0.2)
    assert status.goodput.startup_seconds == 0.3
    assert status.observed_generation == 1


def test_nothing_new_changes_nothing() -> None:
    run = running()
    again = plan(run, all_pods(), report(progress=progress(10)), 60)
    assert again.status == run.status


def test_what_nobody_tells_any_more_stays() -> None:
    run = running()
    run = then(run, plan(run, all_pods(), report(last_checkpoint=checkpoint(40), progress=progress(41))))
    status = plan(run, all_pods(), report(RunState.WAITING, 0)).status
    assert status.progress is not None
    assert status.progress.step == 41
    assert status.last_checkpoint is not None
    assert status.generation == 1, "it only grows"


def test_trouble_with_the_store_comes_and_goes() -> None:
    run = running()
    since = T0.timestamp() + 9
    run = then(run, plan(run, all_pods(), report(not_durable_since=since, not_durable_why="no space left")))
    durable = run.status.condition("CheckpointsDurable")
    assert durable is not None
    assert (durable.status, durable.message) == ("False", "no space left")
    assert run.status.not_durable_since == datetime.fromtimestamp(since, UTC)
    assert plan(run, all_pods(), report()).status.not_durable_since is None


def test_loss_that_is_no_number_is_left_out() -> None:
    said = report(progress=Progress(step=1, loss=float("nan")))
    status = plan(running(), all_pods(), said).status
    assert status.progress is not None
    assert status.progress.loss is None


@given(st.builds(Report, intent=st.none()))
def test_every_report_that_can_be_read_has_its_plan_and_a_status_that_can_be_written(said: Report) -> None:
    run = then(running(), plan(running(), all_pods(), said))
    assert TrainingRun.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    "said",
    [
        report(progress=Progress(-1, -1, -1, samples_per_second=-1.0, steps_per_second=float("nan"), stage="fit")),
        report(progress=Progress(1, 10, steps_per_second=-1.0), last_checkpoint=replace(checkpoint(4), step=-4)),
        report(last_checkpoint=replace(checkpoint(4), uri="s" * 4_097), resumed_from=replace(checkpoint(4), step=-1)),
        report(
            last_checkpoint=replace(checkpoint(4), time=1e300), resumed_from=replace(checkpoint(4), uri="s" * 5_000)
        ),
        report(not_durable_since=float("inf"), not_durable_why="w" * 40_000),
        report(goodput=Goodput(-1, -1), failures=(failure(1, step=-1),)),
        report(goodput=Goodput(9, float("nan"), -1.0, lost={str(n): -1.0 for n in range(99)})),
        report(RunState.FAILED, message="m" * 100_000),
        report(generation=-1, world_size=-1, restarts=-1),
    ],
)
def test_numbers_out_of_all_bounds_do_not_keep_a_dead_pod_from_being_replaced(said: Report) -> None:
    gone = all_pods()[:2]
    decided = plan(running(), gone, said)
    run = then(running(), decided)
    assert created_places(decided) == [(1, 2)] or run.status.phase == "Failed"
    assert TrainingRun.model_validate_json(run.model_dump_json()) == run


def test_status_survives_the_store() -> None:
    said = report(progress=progress(41), last_checkpoint=checkpoint(40), goodput=Goodput(wall=9, productive=3))
    run = then(running(), plan(running(), all_pods(), said))
    assert TrainingRun.model_validate(run.to_object()) == run
    assert TrainingRun.model_validate_json(run.model_dump_json()) == run


def test_older_operator_reads_what_a_newer_one_wrote() -> None:
    document = running().to_object()
    document["status"]["fromTheFuture"] = {"a": 1}
    document["status"]["nodes"]["spare"] = 1
    assert TrainingRun.model_validate(document) == running()
