from datetime import UTC, datetime

from everstep_operator.api.trainingrun import TrainingRun
from everstep_protocol.messages import Goodput, Progress, RunState
from tests.plan.builders import T0, all_pods, at, checkpoint, plan, progress, report, running, then


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
