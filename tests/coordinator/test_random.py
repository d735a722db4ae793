"""Anything happens in any order. The world checks after every word that is spoken (World._look, _start, _keep)."""

from dataclasses import replace

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from everstep_protocol.backoff import Backoff
from everstep_protocol.messages import RunState, StopCause
from tests.coordinator.world import BUG, ECHO, KILLED, World, intent

nodes = st.integers(0, 2)
happenings = st.one_of(
    st.tuples(st.just("time"), st.sampled_from([0.1, 0.1, 0.5, 2.0, 11.0])),
    st.tuples(st.just("clock"), st.sampled_from([0.1, 0.3, 0.6])),
    st.tuples(st.just("talk"), nodes),
    st.tuples(st.just("train"), nodes),
    st.tuples(st.just("kill"), nodes),
    st.tuples(st.just("echo"), nodes),
    st.tuples(st.just("bug"), nodes),
    st.tuples(st.just("lose"), nodes),
    st.tuples(st.just("cut"), nodes),
    st.tuples(st.just("heal"), nodes),
    st.tuples(st.just("join"), nodes),
    st.tuples(st.just("coordinator"), st.none()),
    st.tuples(st.just("preempt"), nodes),
    st.tuples(st.just("interrupt"), nodes),
    st.tuples(st.just("suspend"), st.none()),
)
FAILURES = {"kill": KILLED, "echo": ECHO, "bug": BUG}


def happen(world: World, what: str, value: object) -> None:
    if what == "coordinator":
        world.replace_coordinator()
    elif what == "suspend":
        world.wish = replace(world.wish, stop=StopCause.SUSPEND)
        world.run.set_intent(replace(world.run.intent, stop=StopCause.SUSPEND), world.now)
    elif isinstance(value, float):
        if what == "time":
            world.pass_time(value)
        else:
            world.now += value
            world.run.tick(world.now)
    elif isinstance(value, int):
        launcher = world.at(value)
        if what in FAILURES:
            world.fail(launcher, FAILURES[what])
        elif what == "talk":
            world.talk(launcher)
        elif what == "train":
            world.train(launcher)
        elif what == "lose":
            world.lose(launcher)
        elif what in ("cut", "heal"):
            launcher.reachable = what == "heal"
        elif what == "join":
            world.join(value)
        elif what == "preempt":
            launcher.stop = StopCause.PREEMPTION
        else:
            launcher.stop = StopCause.INTERRUPT


# No shrinking: it takes minutes, and the example as found reads well enough.
@settings(max_examples=150, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    happened=st.lists(happenings, max_size=40),
    min_nodes=st.sampled_from([3, 3, 2, 1]),
    nproc=st.sampled_from([1, 2]),
    head_start=st.sampled_from([0, 0, 6]),
    replaces=st.booleans(),
)
@example(
    happened=[("join", 2), ("talk", 2), ("interrupt", 2), ("talk", 2)],
    min_nodes=3,
    nproc=1,
    head_start=0,
    replaces=True,
)
def test_whatever_happens_the_rules_hold_and_the_run_ends(
    happened: list[tuple[str, object]], min_nodes: int, nproc: int, head_start: int, replaces: bool
) -> None:
    wish = intent(3, min_nodes=min_nodes, max_restarts=4, backoff=Backoff(0.5, 2.0, 4.0), replaces=replaces)
    world = World(wish, total=30, nproc=nproc)
    if head_start:
        world.until_step(head_start)
    for what, value in happened:
        happen(world, what, value)
    # All is well from now on: whoever is gone gets a successor, and the run comes to an end.
    for launcher in world.launchers:
        launcher.reachable = True
    over = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)
    for _ in range(400):
        if world.report.state in over:
            world.pass_time(1)
            if world.report.state in over:  # a launcher that came late may have taken up a run that had stopped
                break
        for node in range(3):
            if not world.at(node).alive:
                world.join(node)
        world.pass_time(0.5)
    assert world.report.state in over, world.report.message
    if not happened:
        assert world.report.state is RunState.SUCCEEDED
    assert not [launcher for launcher in world.crew if launcher.alive], "workers outlived the run"
