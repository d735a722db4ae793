"""What holds in every history: random accidents, crashes between writing down and acting, silent coordinators."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everstep_operator.api.trainingrun import Phase, Status
from everstep_operator.plan.model import Action, CreatePod, DeletePod, Plan
from everstep_operator.plan.phase import GRAPH
from everstep_protocol.messages import RunState
from tests.plan.builders import run
from tests.plan.simulated import World

MAX_RESTARTS = 2

#: (which accident, on which pod, whether the operator crashes between saving the status and acting)
turns = st.lists(
    st.tuples(st.integers(0, len(World.ACCIDENTS) - 1), st.integers(0, 11), st.booleans()), min_size=12, max_size=60
)
sizes = st.sampled_from([(1, None), (2, None), (3, None), (3, 2), (4, 1)])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(turns, sizes)
def test_invariants(turns: list[tuple[int, int, bool]], size: tuple[int, int | None]) -> None:
    world = new_world(size)
    reconcile(world)
    for accident, index, crash in turns:
        World.ACCIDENTS[accident](world, index)
        reconcile(world, crash=crash)
    if not world.run.status.phase or not world.run.status.phase.over:
        world.resumed(0)
        for _ in range(30):
            world.kind_turn()
            reconcile(world)
    # Whatever has happened before: in a kind world each run comes to its end, and nothing is left over.
    assert world.run.status.phase in (Phase.SUCCEEDED, Phase.FAILED)
    for _ in range(3):
        world.kind_turn()
        reconcile(world)
    assert [pod for pod in world.pods.values() if not pod.finished] == []
    assert world.deleted == (world.run.spec.ttl_seconds_after_finished is not None)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(turns, sizes)
def test_suspension_is_always_reached(turns: list[tuple[int, int, bool]], size: tuple[int, int | None]) -> None:
    world = new_world(size)
    reconcile(world)
    for accident, index, crash in turns:
        World.ACCIDENTS[accident](world, index)
        reconcile(world, crash=crash)
    world.suspended(0)
    for _ in range(12):
        reconcile(world)
        world.kind_turn()
    assert world.run.status.phase in (Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED)
    left = [pod for pod in world.pods.values() if not pod.finished or not world.run.status.phase.over]
    assert left == []


def new_world(size: tuple[int, int | None]) -> World:
    nodes, low = size
    ttl = 600 if nodes == 3 else None
    return World(run(nodes, min=low, max=nodes + 1, max_restarts=MAX_RESTARTS, ttlSecondsAfterFinished=ttl))


def reconcile(world: World, crash: bool = False) -> None:
    """One turn, with every property checked; after a crash the turn is repeated from the saved status."""
    if world.deleted:
        return
    before = world.run.status
    plan = world.plan()
    check(world, before, plan)
    world.save(plan.status)
    if crash:
        plan = world.plan()
        check(world, world.run.status, plan)
        world.save(plan.status)
    done: list[Action] = []
    for _ in range(3):  # a phase that is reached, or a pod that is forgotten, may be followed by one more look
        assert not [action for action in plan.actions if action in done], "nothing is done twice"
        done += plan.actions
        world.apply(plan)
        if world.deleted:
            return
        plan = world.plan()
        check(world, world.run.status, plan)
        world.save(plan.status)
        if not plan.actions and plan.wake_after != 0:
            return
    raise AssertionError(f"it does not come to rest: {plan.actions}")


def check(world: World, before: Status, plan: Plan) -> None:
    after = plan.status
    assert after.phase is not None
    assert after.phase == before.phase or after.phase in GRAPH[before.phase], f"{before.phase} -> {after.phase}"
    if after.phase is Phase.RUNNING:
        assert after.nodes.ready >= world.run.spec.min_nodes
        assert len({world.pods[name].node for name in world.workers()}) >= world.run.spec.min_nodes
    assert after.restarts.total <= MAX_RESTARTS
    assert sum(after.restarts.by_cause.values()) == after.restarts.total
    for old, new in (
        (before.restarts.total, after.restarts.total),
        (before.generation, after.generation),
        (before.restarts.generation, after.restarts.generation),
        (before.attempt, after.attempt),
    ):
        assert old <= new
    born = [action.spec.name for action in plan.actions if isinstance(action, CreatePod)]
    gone = [action.name for action in plan.actions if isinstance(action, DeletePod)]
    assert len(born) == len(set(born))
    assert len(gone) == len(set(gone))
    assert not set(born) & set(gone)
    assert not set(born) & set(world.pods)
    assert (after.completion_time is not None) == after.phase.over
    assert plan.poll or after.phase.over or after.phase is Phase.SUSPENDED
    check_places(world, plan, gone)
    for event in plan.events:
        assert event.message
    if after == before:
        assert plan.events == (), "only changes make events"


def check_places(world: World, plan: Plan, gone: list[str]) -> None:
    """Of each node index at most one pod lives, and none that is well is taken away without a reason."""
    forgotten = {action.name for action in plan.actions if isinstance(action, DeletePod) and action.grace_seconds == 0}
    alive = [(p.role, p.node) for p in world.pods.values() if not p.finished and p.name not in forgotten]
    born = [(a.spec.role, a.spec.node) for a in plan.actions if isinstance(a, CreatePod)]
    places = [*alive, *born]
    assert len(places) == len(set(places))
    status, spec, coordinator = plan.status, world.run.spec, world.coordinator
    assert status.phase is not None
    stopped = coordinator is not None and coordinator.state is RunState.STOPPED
    if status.phase.over or status.phase is Phase.SUSPENDED or stopped:
        return
    scaled = status.condition("Moving") is not None
    for name in {name for name in gone if name in world.talking() and not world.pods[name].terminating}:
        pod = world.pods[name]
        assert scaled or (pod.node or 0) >= spec.num_nodes, f"{name} was well"
