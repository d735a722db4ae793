"""What the operator tells the coordinator."""

from dataclasses import replace

from everstep_operator.api.trainingrun import GoodputStatus, Status, TrainingRun
from everstep_operator.plan.restart import backoff_of
from everstep_protocol.messages import Goodput, Intent, Report, StopCause


def first_intent(run: TrainingRun, status: Status, stop: StopCause | None) -> Intent:
    """For a coordinator that begins: what was used of the budget, and a generation later than any before."""
    return Intent(
        nodes=run.spec.num_nodes,
        min_nodes=run.spec.min_nodes,
        step=run.spec.elastic_policy.step if run.spec.elastic_policy else 1,
        max_restarts=run.spec.failure_policy.max_restarts,
        restarts_used=status.restarts.total,
        goodput=_spent(status.goodput),
        first_generation=max(status.generation, status.restarts.generation) + 1,
        backoff=backoff_of(run),
        stop=stop,
        run_uid=run.metadata.uid,
        replaces=True,
    )


def changed_intent(run: TrainingRun, status: Status, report: Report, stop: StopCause | None) -> Intent | None:
    """What a coordinator that is at work has to be told; None: it knows.

    What was counted before it began stays as it was: it has counted on from there. Nor is one that is too old to know
    of `replaces` told of it for ever.
    """
    wanted = first_intent(run, status, stop)
    if report.intent is None:
        return wanted
    theirs = report.intent
    known = replace(
        wanted,
        restarts_used=theirs.restarts_used,
        goodput=theirs.goodput,
        first_generation=theirs.first_generation,
        replaces=theirs.replaces,
    )
    return None if known == theirs else replace(known, replaces=wanted.replaces)


def _spent(goodput: GoodputStatus | None) -> Goodput:
    if goodput is None:
        return Goodput()
    parts = (goodput.productive_seconds, goodput.waiting_seconds, goodput.startup_seconds)
    return Goodput(sum(parts) + sum(goodput.lost_seconds.values()), *parts, goodput.lost_seconds)


def interrupted(report: Report | None) -> bool:
    """Somebody at the terminal has asked the run to save and stop. The planner keeps its hands off."""
    return report is not None and report.intent is not None and report.intent.stop is StopCause.INTERRUPT
