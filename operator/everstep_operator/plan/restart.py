"""What counts as a restart, how many are left, and how long the next one waits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from everstep_operator.api.trainingrun import Attempt, Restarts, Status, TrainingRun
from everstep_operator.plan.model import Observed, Pod
from everstep_operator.plan.pods import died, newest_attempt, workers
from everstep_protocol.backoff import Backoff, delay
from everstep_protocol.messages import RunState
from everstep_protocol.reasons import LAST_LINES, LINE_LIMIT, Failure, Reason

KEPT_ATTEMPTS = 10
#: Reasons of a Restarting run. Pods had to leave, which is not counted:
DISRUPTED = "Disrupted"
#: A failure is seen and will be counted, when its cause is known:
RANK_FAILED = "RankFailed"


@dataclass(frozen=True)
class Counted:
    """The status with new failures in it."""

    status: Status
    new: tuple[Attempt, ...] = ()
    over_budget: bool = False  # one of them had no restart left


def count_failures(run: TrainingRun, status: Status, observed: Observed, now: datetime, *, pods_too: bool) -> Counted:
    """Count each failure once, whoever tells of it first: the coordinator's report or a dead pod.

    A generation fails at most once, so its number says what has been counted. Pods that died before they belonged to a
    generation are told apart by their attempt. `pods_too`: False while pods die because they have been told to.
    """
    restarts, attempts, over_budget = status.restarts, list(status.attempts), False
    new: list[Attempt] = []
    last_word = _last_word(observed)
    for failure, generation in _failures(status, observed, pods_too):
        if generation is not None and generation <= restarts.generation:
            continue
        attempt = _attempt(run, failure, observed, now)
        new.append(attempt)
        final = (last_word is not None and generation == last_word) or not failure.reason.retryable
        spent = restarts.total >= run.spec.failure_policy.max_restarts
        over_budget = over_budget or (spent and not final)
        restarts = Restarts(
            total=restarts.total + (not spent and not final),
            by_cause=restarts.by_cause if spent or final else _plus_one(restarts.by_cause, attempt.reason),
            generation=restarts.generation if generation is None else generation,
            attempt=max(restarts.attempt, newest_attempt(observed)),
        )
    attempts = [*attempts, *new][-KEPT_ATTEMPTS:]
    updated = status.model_copy(update={"restarts": restarts, "attempts": tuple(attempts)})
    return Counted(updated, tuple(new), over_budget)


def _last_word(observed: Observed) -> int | None:
    """Generation of a failure that no restart has followed: the run gave up, or was about to stop anyway."""
    report = observed.report
    if report is None or not report.failures:
        return None
    last = report.failures[-1].generation
    stopped = report.state in (RunState.STOPPING, RunState.STOPPED) and last == report.generation
    return last if report.state is RunState.FAILED or stopped else None


def _failures(status: Status, observed: Observed, pods_too: bool) -> Iterator[tuple[Failure, int | None]]:
    """Candidates, each with the generation that it ended; None: it belonged to none and has not been counted."""
    reported = observed.report.failures if observed.report else ()
    known = max([status.restarts.generation, *(failure.generation for failure in reported)])
    yield from sorted(((f, f.generation) for f in reported if f.generation > 0), key=lambda pair: pair[1])
    if not pods_too:
        return
    before_any_round: Failure | None = None
    for pod in filter(died, workers(observed)):
        failure = _last_words(pod)
        if failure.generation > 0:
            yield failure, failure.generation
        elif status.generation > known:
            yield failure, status.generation  # it took part in the group that trained until now
        elif pod.attempt > status.restarts.attempt and before_any_round is None:
            before_any_round = failure  # several at once are one failure
    if before_any_round is not None and not any(f.generation > status.restarts.generation for f in reported):
        yield before_any_round, None


def _last_words(pod: Pod) -> Failure:
    if pod.failure is not None:
        words = pod.failure  # of one that could not even be started they come from the cluster, which knows no index
        return words if words.node >= 0 else replace(words, node=_node(pod))
    how = f"exit status {pod.exit_code}" if pod.exit_code is not None else "no exit status"
    message = f"pod {pod.name} ended without last words ({how})" + (f": {pod.message}" if pod.message else "")
    killed = pod.exit_code is not None and pod.exit_code > 128
    return Failure(
        reason=Reason.KILLED if killed else Reason.UNKNOWN,
        message=message,
        node=_node(pod),
        exit_code=pod.exit_code,
        signal=pod.exit_code - 128 if killed and pod.exit_code is not None else None,
        last_lines=pod.last_lines,
    )


def _node(pod: Pod) -> int:
    return -1 if pod.node is None else pod.node


def _attempt(run: TrainingRun, failure: Failure, observed: Observed, now: datetime) -> Attempt:
    ranks = run.spec.ranks_per_node
    if failure.rank < 0 <= failure.node and ranks == 1 and run.spec.min_nodes == run.spec.num_nodes:
        failure = replace(failure, rank=failure.node)  # the only one on that node
    told = failure.traceback.splitlines()  # the launcher prints it below what the rank printed
    machines = {pod.machine for pod in workers(observed) if pod.node == failure.node and pod.machine}
    return Attempt(
        generation=max(0, failure.generation),
        reason=str(failure.reason),
        message=failure.message[:2_048],
        node=failure.node if failure.node >= 0 else None,
        rank=failure.rank if failure.rank >= 0 else None,
        exit_code=failure.exit_code,
        signal=failure.signal,
        step=max(0, failure.step),
        time=now,
        node_name=machines.pop() if len(machines) == 1 else "",
        last_lines=tuple(line[:LINE_LIMIT] for line in (*failure.last_lines, *told)[-LAST_LINES:]),
    )


def details(attempt: Attempt) -> str:
    """`node 1 on gpu-7, rank 3, signal 9, step 41`: what is known of a failure beside its reason and message."""
    machine = f" on {attempt.node_name}" if attempt.node_name else ""
    how = f"signal {attempt.signal}" if attempt.signal else f"exit status {attempt.exit_code}"
    parts = (
        f"node {attempt.node}{machine}" if attempt.node is not None else "",
        f"rank {attempt.rank}" if attempt.rank is not None else "",
        how if attempt.signal or attempt.exit_code is not None else "",
        f"step {attempt.step}" if attempt.step else "",
    )
    return ", ".join(filter(None, parts)) or "nothing more is known"


def _plus_one(counts: dict[str, int], reason: str) -> dict[str, int]:
    return counts | {reason: counts.get(reason, 0) + 1}


def backoff_of(run: TrainingRun) -> Backoff:
    policy = run.spec.failure_policy.backoff
    return Backoff(policy.initial_seconds, policy.factor, policy.max_seconds)


def replace_after(run: TrainingRun, status: Status) -> datetime | None:
    """When a dead pod may be replaced; None: nothing has failed yet."""
    if not status.attempts:
        return None
    in_a_row = 1
    for later, earlier in zip(reversed(status.attempts), reversed(status.attempts[:-1]), strict=False):
        if later.step > earlier.step:
            break
        in_a_row += 1
    seconds = delay(backoff_of(run), in_a_row, run.metadata.uid)
    return status.attempts[-1].time + timedelta(seconds=seconds)
