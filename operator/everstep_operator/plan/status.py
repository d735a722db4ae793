"""What the status learns from pods and report: numbers and places, no decisions.

A run has its plan whatever a report claims: what is out of all bounds is left out, or brought within them.
"""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from everstep_operator.api.trainingrun import (
    GoodputStatus,
    LastCheckpoint,
    Nodes,
    ProgressStatus,
    ResumedFrom,
    Status,
    TrainingRun,
)
from everstep_operator.plan.conditions import CHECKPOINTS_DURABLE, PROGRESS_REPORTED, with_condition
from everstep_operator.plan.model import Observed
from everstep_operator.plan.pods import running_workers, selector
from everstep_protocol.messages import Goodput, Progress, Report

#: In seconds: ten years. Whoever trains that long knows better.
_LONGEST_ETA = 10 * 365 * 86_400.0
_LARGEST = 2**53 - 1  # that JSON readers agree on
_LONGEST_URI = 4_096
_MOST_CAUSES = 64


def learn(run: TrainingRun, observed: Observed, now: datetime) -> Status:
    """The run's status with what is seen now. What nobody tells any more stays as it was last told."""
    status = run.status
    update: dict[str, Any] = {
        "observed_generation": run.metadata.generation,
        "selector": selector(run),
        "nodes": Nodes(desired=run.spec.num_nodes, ready=len({pod.node for pod in running_workers(observed)})),
    }
    if (report := observed.report) is not None:
        update |= _from_report(status, report, now)
    status = status.model_copy(update=update)
    if report is not None and report.progress is not None and (report.progress.step > 0 or report.progress.stage):
        status = with_condition(status, PROGRESS_REPORTED, "True", "Reported", "", now)
    return status if report is None else _durable(status, report, now)


def _durable(status: Status, report: Report, now: datetime) -> Status:
    """Whether checkpoints can be saved, once that is known."""
    if report.not_durable_since is not None:
        return with_condition(status, CHECKPOINTS_DURABLE, "False", "SavingFails", report.not_durable_why[:32_768], now)
    if report.last_checkpoint is not None:
        return with_condition(status, CHECKPOINTS_DURABLE, "True", "Saved", "", now)
    return status


def _from_report(status: Status, report: Report, now: datetime) -> dict[str, Any]:
    update: dict[str, Any] = {
        "generation": max(status.generation, _count(report.generation)),
        "world_size": _count(report.world_size),
        "not_durable_since": _time(report.not_durable_since),
    }
    if report.progress is not None:
        update["progress"] = _progress(status.progress, report.progress, now)
    saved, resumed = report.last_checkpoint, report.resumed_from
    if saved is not None and len(saved.uri) <= _LONGEST_URI and (time := _time(saved.time)) is not None:
        update["last_checkpoint"] = LastCheckpoint(
            step=_count(saved.step),
            uri=saved.uri,
            time=time,
            world_size=_count(saved.world_size),
            verified=saved.verified,
        )
    if resumed is not None and len(resumed.uri) <= _LONGEST_URI:
        update["resumed_from"] = ResumedFrom(step=_count(resumed.step), uri=resumed.uri, note=resumed.note[:2_048])
    if report.goodput.wall > 0:
        update["goodput"] = _goodput(report.goodput)
    return update


def _progress(old: ProgressStatus | None, new: Progress, now: datetime) -> ProgressStatus:
    step, max_steps, pace = _count(new.step), _count(new.max_steps or 0) or None, new.samples_per_second
    progress = ProgressStatus(
        step=step,
        max_steps=max_steps,
        percent=min(100, 100 * step // max_steps) if max_steps else None,
        epoch=_count(new.epoch),
        loss=_rounded(new.loss, 6),
        samples_per_second=None if pace is None or pace < 0 else _rounded(pace, 3),
        eta=_eta(old, new, now),
        updated_at=old.updated_at if old is not None else None,
    )
    return progress if progress == old else progress.model_copy(update={"updated_at": now})


def _eta(old: ProgressStatus | None, new: Progress, now: datetime) -> datetime | None:
    """A time of day, which moves only when the pace does: a status that always differs would always be written."""
    pace, max_steps = _seconds(new.steps_per_second or 0.0), _count(new.max_steps or 0)
    if not pace or max_steps <= _count(new.step):
        return None
    left = min((max_steps - _count(new.step)) / pace, _LONGEST_ETA)
    eta = (now + timedelta(seconds=left)).replace(microsecond=0)
    before = old.eta if old is not None else None
    if before is not None and abs((before - eta).total_seconds()) <= max(10.0, 0.05 * left):
        return before
    return eta


def _goodput(goodput: Goodput) -> GoodputStatus:
    return GoodputStatus(
        ratio=round(min(1.0, _seconds(goodput.ratio)), 4),
        productive_seconds=round(_seconds(goodput.productive), 3),
        waiting_seconds=round(_seconds(goodput.waiting), 3),
        startup_seconds=round(_seconds(goodput.startup), 3),
        lost_seconds={
            reason: round(_seconds(seconds), 3) for reason, seconds in sorted(goodput.lost.items())[:_MOST_CAUSES]
        },
    )


def _count(number: int) -> int:
    return min(max(0, number), _LARGEST)


def _seconds(number: float) -> float:
    return number if math.isfinite(number) and number > 0 else 0.0


def _rounded(number: float | None, digits: int) -> float | None:
    """Significant digits: a status is for reading. NaN and infinity are no JSON."""
    if number is None or not math.isfinite(number):
        return None
    return float(f"{number:.{digits}g}")


def _time(seconds: float | None) -> datetime | None:
    """None as well for what is no time of any calendar."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
