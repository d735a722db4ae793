"""activeDeadlineSeconds: counted from the start or the last resume, as batch/v1 does it."""

from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Status, TrainingRun


def deadline(run: TrainingRun, status: Status) -> datetime | None:
    if run.spec.active_deadline_seconds is None or status.start_time is None:
        return None
    return status.start_time + timedelta(seconds=run.spec.active_deadline_seconds)


def is_past(run: TrainingRun, status: Status, now: datetime) -> bool:
    limit = deadline(run, status)
    return limit is not None and now >= limit
