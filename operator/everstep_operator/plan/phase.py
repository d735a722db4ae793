"""The phases of a run and the graph along which they move. docs/phases.md draws it; a test compares the two."""

from everstep_operator.api.trainingrun import Phase, Status
from everstep_operator.plan.observe import knows_who_is_there
from everstep_protocol.messages import Report, RunState

P = Phase

#: From each phase to those that may follow. None: the run is new. A run is looked at now and then, so a phase that
#: passed between two looks is skipped: Pending to Running is legal.
GRAPH: dict[Phase | None, frozenset[Phase]] = {
    None: frozenset({P.PENDING, P.SUSPENDED}),
    P.PENDING: frozenset({P.STARTING, P.RUNNING, P.RESTARTING, P.SUSPENDED, P.SUCCEEDED, P.FAILED}),
    P.STARTING: frozenset({P.RUNNING, P.RESTARTING, P.SUSPENDED, P.SUCCEEDED, P.FAILED}),
    P.RUNNING: frozenset({P.RESTARTING, P.SUSPENDED, P.SUCCEEDED, P.FAILED}),
    P.RESTARTING: frozenset({P.RUNNING, P.SUSPENDED, P.SUCCEEDED, P.FAILED}),
    P.SUSPENDED: frozenset({P.PENDING}),
    P.SUCCEEDED: frozenset(),
    P.FAILED: frozenset(),
}


def next_phase(
    status: Status, report: Report | None, *, min_nodes: int, failed_now: bool, seen_generation: int
) -> Phase:
    """The phase of a run that is neither over nor asked to stop.

    Args:
        failed_now: this very look counted a failure.
        seen_generation: the last generation that was known before this report.
    """
    phase, ready, desired = status.phase, status.nodes.ready, status.nodes.desired
    state = report.state if report is not None else None
    if phase is None:
        return P.PENDING
    if phase is P.PENDING:
        if state in (RunState.RESTARTING, RunState.STOPPED) or failed_now:
            return P.RESTARTING
        if state in (RunState.RUNNING, RunState.STOPPING) and ready >= min_nodes:
            return P.RUNNING
        return P.STARTING if state is RunState.STARTING or ready >= desired else P.PENDING
    if phase is P.STARTING:
        if state in (RunState.RESTARTING, RunState.STOPPED) or failed_now:
            return P.RESTARTING
        return P.RUNNING if state in (RunState.RUNNING, RunState.STOPPING) and ready >= min_nodes else P.STARTING
    if phase is P.RUNNING:
        # A coordinator that is away stops nobody: training goes on while the pods run. Nor does a new one that waits
        # to hear from the launchers of a generation that was there before it.
        waits = state in (RunState.WAITING, RunState.STARTING)
        new = report is not None and not (report.members and knows_who_is_there(report))
        away = report is None or (waits and report.generation <= seen_generation and new)
        trains = (away or state in (RunState.RUNNING, RunState.STOPPING)) and not failed_now
        return P.RUNNING if trains and ready >= min_nodes else P.RESTARTING
    if phase is P.RESTARTING and state is RunState.RUNNING and ready >= min_nodes and not failed_now:
        return P.RUNNING
    return phase
