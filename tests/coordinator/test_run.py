"""One thing happens at a time: what the coordinator makes of it."""

from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.coordinator.run import FORGET_SECONDS, JOIN_SECONDS, Run
from everstep_protocol.backoff import Backoff
from everstep_protocol.codec import BadMessage
from everstep_protocol.messages import (
    LOST_SECONDS,
    Action,
    Goodput,
    GrantRequest,
    Intent,
    RunState,
    StopCause,
    Workers,
)
from everstep_protocol.reasons import EXIT_STOPPED, Failure, Reason
from tests.coordinator.world import BUG, ECHO, KILLED, World, intent, stopped_at


def test_trains_to_the_end() -> None:
    world = World()
    report = world.until(RunState.SUCCEEDED)
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [0, 0, 0]
    assert (report.generation, report.restarts, report.failures) == (1, 0, ())
    assert report.progress is not None
    assert report.progress.step == world.total
    assert report.last_checkpoint is not None
    assert report.goodput.productive > 0
    assert report.goodput.startup > 0


def test_waits_for_all_nodes_and_says_for_which() -> None:
    world = World(start=False)
    world.join(0)
    world.join(2)
    world.pass_time(60)
    assert world.report.state is RunState.WAITING
    assert world.report.message == "waiting for node 1 (2 of 3 are here)"
    assert world.report.seconds_up == pytest.approx(60, abs=1)
    world.join(1)
    world.pass_time(0.3)
    assert world.report.state in (RunState.STARTING, RunState.RUNNING)


def test_a_node_that_went_quiet_gets_no_seat() -> None:
    world = World(start=False)
    world.join(0)
    world.join(1)
    world.pass_time(1)
    world.at(0).reachable = False
    world.pass_time(4)
    world.join(2)
    world.pass_time(1)
    assert world.report.state is RunState.WAITING
    world.at(0).reachable = True
    world.pass_time(0.3)
    assert world.report.world_size == 3


def test_enough_nodes_begin_after_the_join_timeout() -> None:
    world = World(intent(3, min_nodes=2), start=False)
    world.join(2)
    world.join(0)
    world.pass_time(JOIN_SECONDS - 1)
    assert world.report.state is RunState.WAITING
    world.pass_time(2)
    assert world.report.world_size == 2
    assert [launcher.round.node_rank for launcher in world.launchers if launcher.round] == [1, 0]


def test_only_sizes_that_fit_the_step_train_together() -> None:
    world = World(intent(6, min_nodes=2, step=2), start=False)
    for node in (0, 2, 3, 4, 5):
        world.join(node)
    world.pass_time(JOIN_SECONDS + 1)
    assert world.report.world_size == 4
    assert sorted(launcher.node for launcher in world.launchers if launcher.round) == [0, 2, 3, 4]


def test_ranks_follow_node_indices() -> None:
    world = World(intent(3), nproc=2, start=False)
    for node in (2, 0, 1):
        world.join(node)
    world.pass_time(0.3)
    rounds = {launcher.node: launcher.round for launcher in world.launchers}
    assert {node: round.rank_offset for node, round in rounds.items() if round} == {0: 0, 1: 2, 2: 4}
    for round in rounds.values():
        assert round is not None
        assert (round.world_size, round.nodes, round.restarts) == (6, 3, 0)
        assert (round.master_address, round.master_port) == ("10.0.0.0", 20_002)


def test_a_launcher_without_an_index_gets_the_lowest_free_one() -> None:
    world = World(start=False)
    world.join(1)
    world.join(-1)
    world.join(-1)
    world.pass_time(0.3)
    assert [member.node for member in world.report.members] == [0, 1, 2]
    assert world.report.world_size == 3


def test_killed_rank_restarts_all_at_once() -> None:
    world = World()
    world.until_step(13)
    world.fail(world.at(1), KILLED)
    for node in (0, 2):
        world.fail(world.at(node), ECHO)
    world.pass_time(0.5)
    assert {launcher.generation for launcher in world.launchers} == {2}
    report = world.until(RunState.SUCCEEDED)
    assert report.restarts == 1
    assert report.resumed_from is not None
    assert report.resumed_from.step == 10
    (failure,) = report.failures
    assert (failure.reason, failure.node, failure.rank, failure.generation) == (Reason.KILLED, 1, 1, 1)


def test_others_are_told_to_kill_at_once() -> None:
    world = World()
    world.until_step(5)
    world.fail(world.at(2), KILLED)
    world.talk(world.at(2))
    directive = world.talk(world.at(0))
    assert directive is not None
    assert directive.action is Action.WAIT
    assert world.report.state is RunState.RESTARTING


def test_root_cause_beats_its_echoes_and_only_its_holder_prints_it() -> None:
    world = World()
    world.until_step(5)
    world.fail(world.at(0), ECHO)
    world.talk(world.at(0))
    world.fail(world.at(2), BUG)
    world.pass_time(2)
    assert [failure.reason for failure in world.report.failures] == [Reason.USER_EXCEPTION]
    assert [len(world.at(node).shown) for node in range(3)] == [0, 0, 1]
    assert world.at(2).shown[0].traceback == BUG.traceback


def test_a_cause_with_a_name_beats_an_unknown_exit() -> None:
    world = World()
    world.until_step(5)
    world.fail(world.at(0), Failure(Reason.UNKNOWN, "exit status 1", exit_code=1))
    world.talk(world.at(0))
    world.fail(world.at(1), KILLED)
    world.pass_time(2)
    assert [failure.reason for failure in world.report.failures] == [Reason.KILLED]


def test_settles_without_the_nodes_that_say_nothing() -> None:
    world = World(intent(3, min_nodes=2))
    world.until_step(5)
    world.at(0).reachable = False
    world.fail(world.at(1), KILLED)
    world.talk(world.at(1))
    assert not world.report.failures
    world.pass_time(0.7)
    assert [failure.reason for failure in world.report.failures] == [Reason.KILLED]


def test_silent_node_is_lost_and_replaced() -> None:
    world = World()
    world.until_step(5)
    world.lose(world.at(1))
    world.pass_time(LOST_SECONDS - 1)
    assert world.report.restarts == 0
    world.pass_time(2)
    assert [failure.reason for failure in world.report.failures] == [Reason.NODE_LOST]
    assert "node 1 has not spoken" in world.report.failures[0].message
    world.join(1)
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_new_launcher_of_a_node_wins_and_the_old_one_leaves() -> None:
    world = World()
    world.until_step(5)
    old = world.at(1)
    old.reachable = False
    world.join(1)
    world.pass_time(1)
    assert [failure.reason for failure in world.report.failures] == [Reason.NODE_LOST]
    old.reachable = True
    world.pass_time(0.2)
    assert old.exit_code == 1
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_a_lost_node_explains_the_communication_errors_before_it() -> None:
    world = World()
    world.until_step(5)
    world.lose(world.at(1))
    world.fail(world.at(0), ECHO)
    world.pass_time(1)
    assert [failure.reason for failure in world.report.failures] == [Reason.COMMUNICATION]
    world.join(1)
    world.pass_time(0.2)
    assert [failure.reason for failure in world.report.failures] == [Reason.NODE_LOST]
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_a_node_that_was_cut_off_leaves_when_the_others_went_on() -> None:
    world = World(intent(3, min_nodes=2), total=2000)
    world.until_step(5)
    cut_off = world.at(2)
    cut_off.reachable = False
    world.pass_time(LOST_SECONDS + JOIN_SECONDS + 2)
    assert world.report.world_size == 2
    cut_off.reachable = True
    world.pass_time(0.2)
    assert cut_off.exit_code == 1


def test_a_node_that_was_cut_off_joins_again_while_the_others_wait() -> None:
    world = World()
    world.until_step(5)
    world.at(2).reachable = False
    world.pass_time(LOST_SECONDS + 2)
    assert world.report.state is RunState.RESTARTING
    world.at(2).reachable = True
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_our_own_sleep_is_no_silence_of_the_nodes() -> None:
    world = World()
    world.until_step(5)
    world.now += 3600
    world.run.tick(world.now)
    assert world.until(RunState.SUCCEEDED).restarts == 0


def test_same_failure_without_progress_gives_up_before_the_budget_is_spent() -> None:
    world = World(intent(3, max_restarts=10))
    world.bug = 1, 3
    report = world.until(RunState.FAILED)
    assert report.restarts == 2
    assert report.message == "gave up after 3 identical failures at step 3: UserException: ValueError: no (train.py:12)"
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [1, 1, 1]
    assert len(world.at(1).shown) == 3  # each failure once; the launcher knows a traceback that it has shown


def test_same_failure_with_progress_between_goes_on() -> None:
    world = World(intent(3, max_restarts=10))
    for step in (3, 4, 6, 8):
        world.until_step(step)
        world.fail(world.at(1), KILLED)
        world.pass_time(1)
    assert world.until(RunState.SUCCEEDED).restarts == 4


def test_different_failures_are_not_one_bug() -> None:
    world = World(intent(3, max_restarts=10))
    for failure in (BUG, KILLED, BUG, KILLED):
        world.until_step(3)
        world.fail(world.at(1), failure)
        world.next_round()
    assert world.until(RunState.SUCCEEDED).restarts == 4


def test_budget_is_spent_and_no_more() -> None:
    world = World(intent(3, max_restarts=2, restarts_used=1))
    for step in (3, 8):
        world.until_step(step)
        world.fail(world.at(0), KILLED)
        world.pass_time(1)
    report = world.until(RunState.FAILED)
    assert report.restarts == 2
    assert report.message == "gave up: all 2 restarts are spent: Killed: killed by SIGKILL"


def test_failures_that_no_restart_cures_end_the_run() -> None:
    world = World()
    world.pass_time(0.3)
    world.fail(world.at(0), Failure(Reason.COMMAND_NOT_FOUND, "trian.py: no such file"))
    report = world.until(RunState.FAILED)
    assert report.restarts == 0
    assert report.message == "gave up: no restart can help: CommandNotFound: trian.py: no such file"


@pytest.mark.parametrize(
    ("failure", "step", "changes", "ends"),
    [
        (BUG, 0, {"retry_start": False}, True),
        (BUG, 1, {"retry_start": False}, True),  # it was entered, not done
        (BUG, 0, {}, False),
        (BUG, 3, {"retry_start": False}, False),
        (KILLED, 0, {"retry_start": False}, False),  # nothing that code says would be said again
    ],
)
def test_what_a_script_raises_before_a_step_is_done_ends_a_run_that_asked_for_no_budget(
    failure: Failure, step: int, changes: dict[str, Any], ends: bool
) -> None:
    world = World(intent(1, **changes))
    world.until_step(step)
    world.fail(world.at(0), failure)
    report = world.until(RunState.FAILED if ends else RunState.SUCCEEDED)
    assert report.restarts == (not ends)
    if ends:
        assert report.message.startswith("gave up before the first step was done (--max-restarts N would try again)")


def test_first_restart_is_immediate_later_ones_wait_and_progress_resets() -> None:
    world = World(intent(3, max_restarts=10, backoff=Backoff(initial_seconds=10.0)))
    world.until_step(3)
    world.fail(world.at(0), KILLED)
    world.pass_time(0.3)
    assert world.report.generation == 2
    world.fail(world.at(0), BUG)
    world.pass_time(7)
    assert world.report.state is RunState.RESTARTING
    assert world.report.message.startswith("restart 2 of 10 in ")
    world.next_round()
    world.until_step(9)
    world.fail(world.at(0), BUG)
    world.pass_time(1)
    assert world.report.generation == 4


def test_stop_of_the_operator_saves_at_one_step_everywhere() -> None:
    world = World()
    world.until_step(7)
    world.run.set_intent(replace(world.wish, stop=StopCause.SUSPEND), world.now)
    assert world.report.state is RunState.STOPPING
    report = world.until(RunState.STOPPED)
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [EXIT_STOPPED] * 3
    (step,) = stopped_at(world)
    assert step > 7
    assert report.last_checkpoint is not None
    assert report.last_checkpoint.step == step
    assert (report.restarts, report.failures, report.stop) == (0, (), StopCause.SUSPEND)


def test_stop_of_one_node_stops_all_of_them() -> None:
    world = World(nproc=2)
    world.until_step(7)
    world.at(2).stop = StopCause.PREEMPTION
    world.until(RunState.STOPPED)
    world.pass_time(1)
    assert len(stopped_at(world)) == 1
    assert len(world.saved) == 2


def test_a_refused_step_is_raised_until_all_accept() -> None:
    world = World()
    world.until_step(7)
    world.at(2).stop = StopCause.INTERRUPT
    world.talk(world.at(2))
    first = world.at(2).limit
    assert first is not None
    world.at(2).steps = [first.step]
    world.entered[1, 2] = first.step
    ahead = world.at(0)
    ahead.steps = [first.step + 5]
    world.entered[1, 0] = first.step + 5
    world.talk(ahead)
    directive = world.talk(world.at(0))
    assert directive is not None
    assert directive.limit is not None
    assert directive.limit.step > first.step + 5
    assert directive.limit.proposal > first.proposal
    world.until(RunState.STOPPED)
    world.pass_time(1)
    assert len(stopped_at(world)) == 1


def test_stop_before_any_step_has_nothing_to_save() -> None:
    world = World()
    world.pass_time(0.1)
    world.launchers[0].steps = [0]
    for launcher in world.launchers:
        world.talk(launcher)
    assert world.report.generation == 1
    world.at(0).stop = StopCause.INTERRUPT
    for launcher in world.launchers:
        world.talk(launcher)
    assert world.report.state is RunState.STOPPED
    assert [launcher.exit_code for launcher in world.launchers] == [EXIT_STOPPED] * 3
    assert not world.saved


def test_preempted_node_that_waits_just_leaves() -> None:
    world = World(start=False)
    world.join(0).stop = StopCause.PREEMPTION
    world.join(1)
    world.pass_time(0.2)
    assert world.at(0).exit_code == EXIT_STOPPED
    assert world.at(1).alive
    world.join(0)
    world.join(2)
    assert world.until(RunState.SUCCEEDED).restarts == 0


def test_end_of_training_beats_a_stop_past_it() -> None:
    world = World(total=7)
    world.until_step(7)
    world.at(2).stop = StopCause.PREEMPTION
    world.talk(world.at(2))
    assert world.until(RunState.SUCCEEDED, RunState.STOPPED).state is RunState.SUCCEEDED


def test_a_failure_on_the_way_to_the_agreed_step_stops_without_a_restart() -> None:
    world = World()
    world.until_step(7)
    world.at(2).stop = StopCause.PREEMPTION
    world.talk(world.at(2))
    world.fail(world.at(0), KILLED)
    report = world.until(RunState.STOPPED)
    assert report.restarts == 0
    assert "stopped (Preemption) by a failure" in report.message


def test_new_nodes_take_a_preempted_run_up_again() -> None:
    world = World()
    world.until_step(7)
    world.at(2).stop = StopCause.PREEMPTION
    world.until(RunState.STOPPED)
    world.pass_time(1)
    for node in range(3):
        world.join(node)
    report = world.until(RunState.SUCCEEDED)
    assert (report.restarts, report.generation) == (0, 2)
    assert report.resumed_from is not None


def preempted(*nodes: int, **wish: Any) -> World:
    """Where somebody brings another pod for each that has to leave."""
    world = World(intent(3, replaces=True, **wish))
    world.until_step(7)
    for node in nodes:
        world.at(node).stop = StopCause.PREEMPTION
    return world


def test_others_save_with_a_preempted_node_and_wait_for_its_successor() -> None:
    world = preempted(2)
    world.until(RunState.WAITING)
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [None, None, EXIT_STOPPED]
    assert [launcher.workers for launcher in world.launchers[:2]] == [Workers.NONE, Workers.NONE]
    step = world.saved[-1].step
    assert f"at the agreed step {step}; waiting for node 2 (2 of 3 are here)" in world.report.message
    world.join(2)
    report = world.until(RunState.SUCCEEDED)
    assert (report.restarts, report.failures, report.generation) == (0, (), 2)
    assert world.resumed[2] == step, "nothing was lost"


def test_before_any_step_a_preempted_node_leaves_alone_as_well() -> None:
    world = World(intent(3, replaces=True))
    world.pass_time(0.1)
    world.launchers[0].steps = [0]
    for launcher in world.launchers:
        world.talk(launcher)
    world.at(1).stop = StopCause.PREEMPTION
    for launcher in world.launchers * 2:
        world.talk(launcher)
    assert [launcher.exit_code for launcher in world.launchers] == [None, EXIT_STOPPED, None]
    world.join(1)
    assert world.until(RunState.SUCCEEDED).restarts == 0


def test_when_all_have_to_leave_nobody_waits() -> None:
    world = preempted(0, 1, 2)
    world.until(RunState.STOPPED)
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [EXIT_STOPPED] * 3


def test_nobody_waits_when_the_operator_wants_a_stop() -> None:
    world = preempted(2)
    world.run.set_intent(replace(world.wish, stop=StopCause.SUSPEND), world.now)
    world.until(RunState.STOPPED)
    world.pass_time(1)
    assert [launcher.exit_code for launcher in world.launchers] == [EXIT_STOPPED] * 3


def test_a_preempted_node_that_is_gone_before_it_has_saved_is_no_failure() -> None:
    world = preempted(2)
    world.talk(world.at(2))
    world.lose(world.at(2))
    world.until(RunState.WAITING)
    world.join(2)
    report = world.until(RunState.SUCCEEDED)
    assert (report.restarts, report.failures, report.generation) == (0, (), 2)
    assert report.goodput.lost[Reason.PREEMPTED] > 0
    assert [launcher.node for launcher in world.launchers] == [0, 1, 2, 2], "the others stayed"


def test_a_failure_of_another_node_on_the_way_to_the_agreed_step_is_one() -> None:
    world = preempted(2)
    world.talk(world.at(2))
    world.fail(world.at(0), KILLED)
    world.pass_time(2)
    assert [launcher.exit_code for launcher in world.launchers] == [None, None, EXIT_STOPPED]
    world.join(2)
    report = world.until(RunState.SUCCEEDED)
    assert (report.restarts, [failure.reason for failure in report.failures]) == (1, [Reason.KILLED])


def test_elastic_runs_go_on_without_the_preempted_node_after_a_while() -> None:
    world = preempted(2, min_nodes=2)
    world.until(RunState.WAITING)
    world.pass_time(JOIN_SECONDS + 1)
    assert (world.report.generation, world.report.world_size) == (2, 2)


def test_a_suspended_run_stays_stopped() -> None:
    world = World()
    world.until_step(7)
    world.run.set_intent(replace(world.wish, stop=StopCause.SUSPEND), world.now)
    world.until(RunState.STOPPED)
    late = world.join(1)
    world.pass_time(1)
    assert late.exit_code == EXIT_STOPPED
    assert world.report.state is RunState.STOPPED


def test_exit_status_of_a_stop_without_a_stop_is_a_failure() -> None:
    world = World()
    world.until_step(7)
    world.at(1).workers = Workers.STOPPED
    world.pass_time(1)
    assert world.report.failures[0].message == f"exit status {EXIT_STOPPED} without a stop"


def test_workers_that_never_appear_are_a_failure() -> None:
    world = World(total=5000)
    world.pass_time(0.1)
    stuck = world.at(1)
    world.at(1).workers, world.at(1).generation = Workers.NONE, 0
    for _ in range(620):
        world.now += 0.1
        for launcher in world.launchers:
            if launcher is stuck:
                world.run.sync(world._state(stuck), world.now)
            else:
                world.talk(launcher)
    assert world.report.failures
    assert world.report.failures[0].message == "no workers after 60 s"


def test_only_the_running_generation_may_publish() -> None:
    world = World()
    world.until_step(5)
    assert world.run.grant(GrantRequest(1, 5)).granted
    assert "is not the one that runs" in world.run.grant(GrantRequest(2, 5)).reason
    world.fail(world.at(0), KILLED)
    world.talk(world.at(0))
    refused = world.run.grant(GrantRequest(1, 5))
    assert (refused.granted, refused.reason) == (False, "generation 1 has failed")
    world.until_step(6)
    refused = world.run.grant(GrantRequest(1, 5))
    assert (refused.granted, refused.reason) == (False, "generation 1 is not the one that runs (that is 2)")
    world.until(RunState.SUCCEEDED)
    assert not world.run.grant(GrantRequest(2, 40)).granted


def test_first_generation_is_later_than_any_before() -> None:
    world = World(intent(3, first_generation=8))
    world.until_step(2)
    assert world.report.generation == 8


@pytest.mark.parametrize(
    ("wish", "part"),
    [
        (Intent(nodes=0, min_nodes=0, max_restarts=0), "at least one node"),
        (Intent(nodes=2, min_nodes=3, max_restarts=0), "between 1 and nodes (2)"),
        (Intent(nodes=2, min_nodes=2, max_restarts=-1), "counts"),
        (Intent(nodes=2, min_nodes=2, max_restarts=1, first_generation=0), "begin with 1"),
        (Intent(nodes=2, min_nodes=2, max_restarts=1, step=0), "Intent.step is 0"),
    ],
)
def test_an_intent_that_contradicts_itself_is_refused(wish: Intent, part: str) -> None:
    with pytest.raises(BadMessage) as refused:
        Run(wish, 0.0)
    assert part in str(refused.value)
    world = World()
    with pytest.raises(BadMessage):
        world.run.set_intent(wish, world.now)


# Goodput.


def test_lost_time_lasts_until_the_failed_step_is_finished_again() -> None:
    world = World(total=200)
    world.until_step(34)
    world.fail(world.at(0), KILLED)
    world.talk(world.at(0))
    failed_at, before = world.now, world.report.goodput
    world.until_step(35)  # resumed from 30: steps 31 to 34 are redone
    world.pass_time(0.3)
    caught_up = world.now
    world.pass_time(5)
    goodput = world.report.goodput
    assert list(goodput.lost) == [Reason.KILLED]
    assert 0.3 < goodput.lost[Reason.KILLED] <= caught_up - failed_at
    assert goodput.productive >= before.productive + 4.9
    assert goodput.wall == pytest.approx(world.now - 100.0)


def test_goodput_goes_on_from_what_was_counted_before() -> None:
    """After a suspension all are new, and nobody remembers but the operator."""
    before = Goodput(1_000.0, 800.0, 60.0, 40.0, {Reason.KILLED: 100.0})
    world = World(intent(3, goodput=before), total=200)
    began = world.now
    world.until_step(34)
    goodput = world.report.goodput
    assert goodput.wall == pytest.approx(1_000 + world.now - began)
    assert goodput.productive > 800
    assert goodput.waiting + goodput.startup > 100
    assert goodput.lost == before.lost
    world.replace_coordinator()  # is told the same, and more by the launchers
    world.pass_time(1)
    assert world.report.goodput.wall == pytest.approx(1_000 + world.now - began, abs=0.2)


# A coordinator dies.


def test_training_does_not_notice_a_new_coordinator() -> None:
    world = World()
    world.until_step(5)
    world.fail(world.at(1), KILLED)
    world.pass_time(1)
    world.until_step(9)
    before = world.report
    world.replace_coordinator()
    world.pass_time(1)
    after = world.report
    assert (after.generation, after.restarts, after.world_size) == (2, 1, 3)
    assert [failure.generation for failure in after.failures] == [1]
    assert after.state is RunState.RUNNING
    assert after.goodput.wall == pytest.approx(before.goodput.wall + 1, abs=0.2)
    assert after.goodput.lost == pytest.approx(before.goodput.lost)
    report = world.until(RunState.SUCCEEDED)
    assert (report.generation, report.restarts) == (2, 1)


def test_new_coordinator_remembers_same_failures() -> None:
    world = World(intent(3, max_restarts=10))
    world.bug = 1, 8
    for _ in range(2):
        world.next_round()
        world.until_step(2)
        world.replace_coordinator()
    assert "gave up after 3 identical failures" in world.until(RunState.FAILED).message


def test_new_coordinator_keeps_a_committed_step() -> None:
    world = World()
    world.until_step(7)
    world.at(1).stop = StopCause.INTERRUPT
    while not (world.at(0).limit and world.at(0).limit.committed):
        for launcher in world.launchers:
            world.talk(launcher)
        world.talk(world.at(0))
    other = world.at(2)
    assert other.limit is not None
    world.replace_coordinator()
    world.talk(other)  # has the older memory, speaks first
    world.until(RunState.STOPPED)
    world.pass_time(1)
    assert len(stopped_at(world)) == 1


def test_new_coordinator_hears_the_node_with_the_older_memory_first() -> None:
    """The round of generation 2 was formed, and only node 0 had been told when the coordinator died."""
    world = World()
    world.until_step(7)
    world.fail(world.at(1), KILLED)
    for node in (1, 0, 2, 1, 2, 0):
        world.talk(world.at(node))
    assert [world.at(node).generation for node in range(3)] == [2, 1, 1]
    world.replace_coordinator()
    for node in (1, 2, 1, 2):
        world.talk(world.at(node))
    assert world.at(1).workers is Workers.NONE
    world.pass_time(1)
    assert {world.at(node).generation for node in range(3)} == {2}
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_new_coordinator_and_a_node_that_died_with_the_old_one() -> None:
    world = World()
    world.until_step(7)
    world.lose(world.at(1))
    world.replace_coordinator()
    world.pass_time(LOST_SECONDS - 1)
    assert world.report.restarts == 0
    world.pass_time(3)
    assert [failure.reason for failure in world.report.failures] == [Reason.NODE_LOST]
    world.join(1)
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_new_coordinator_and_a_new_launcher_at_the_same_time() -> None:
    world = World()
    world.until_step(7)
    world.lose(world.at(1))
    world.join(1)
    world.replace_coordinator()
    world.talk(world.at(1))
    world.pass_time(1)
    assert [failure.reason for failure in world.report.failures] == [Reason.NODE_LOST]
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_a_node_whose_workers_are_done_is_not_missed() -> None:
    world = World(nproc=1)
    world.until_step(world.total)
    world.train(world.at(1))
    assert world.at(1).workers is Workers.SUCCEEDED
    world.talk(world.at(1))
    world.at(1).reachable = False
    for _ in range(150):
        world.now += 0.1
        for node in (0, 2):
            world.talk(world.at(node))
    assert world.report.restarts == 0
    assert world.until(RunState.SUCCEEDED).restarts == 0


def test_coordinator_that_dies_while_it_looks_for_the_cause() -> None:
    world = World()
    world.until_step(7)
    world.fail(world.at(1), KILLED)
    for node in (1, 0):
        world.talk(world.at(node))
    world.at(1).failure = None  # nobody can repeat what happened
    world.replace_coordinator()
    world.pass_time(2)
    (failure,) = world.report.failures
    assert (failure.generation, failure.reason) == (1, Reason.UNKNOWN)
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_coordinator_that_dies_after_a_failure_counts_it_once() -> None:
    world = World()
    world.until_step(7)
    world.fail(world.at(1), KILLED)
    for node in (1, 0, 2):
        world.talk(world.at(node))
    world.replace_coordinator()
    world.pass_time(2)
    assert [(failure.generation, failure.reason) for failure in world.report.failures] == [(1, Reason.KILLED)]
    assert world.until(RunState.SUCCEEDED).restarts == 1


def test_agents_that_remember_nothing_start_over_with_a_later_generation() -> None:
    world = World()
    world.until_step(7)
    for launcher in world.launchers:
        launcher.memory = None
    world.run = Run(world.wish, world.now)  # its operator has never heard of generation 1 either
    world.pass_time(1)
    report = world.until(RunState.SUCCEEDED)
    assert (report.generation, report.restarts) == (2, 0)


def test_a_grant_is_not_refused_before_the_agents_have_spoken() -> None:
    world = World()
    world.until_step(7)
    world.replace_coordinator()
    assert not world.run.knows(1)
    world.pass_time(0.3)
    assert world.run.knows(1)
    assert world.run.grant(GrantRequest(1, 7)).granted


# Nobody has to be waited for.


def test_alone_once_all_have_been_told_to_leave() -> None:
    world = World()
    assert world.run.alone()
    world.until_step(5)
    assert not world.run.alone()
    world.at(0).stop = StopCause.PREEMPTION
    world.until(RunState.STOPPED)
    world.pass_time(0.5)
    assert world.run.alone()


def held(world: World) -> int:
    """What the coordinator keeps of launchers."""
    return sum(len(each) for each in vars(world.run).values() if isinstance(each, (dict, set)))


def test_launchers_that_were_turned_away_are_forgotten_when_none_can_come_back() -> None:
    world = World(start=False)
    world.join(0)
    world.pass_time(1)
    alone = held(world)
    for _ in range(20):
        late = world.at(0)
        world.join(0)  # a newer launcher of that node
        world.pass_time(0.2)
        assert late.exit_code == 1
    assert held(world) == alone + 20
    for _ in range(2):  # half the time each: who speaks is alive
        world.now += FORGET_SECONDS / 2
        world.run.sync(world._state(late), world.now)
        world.pass_time(0.2)
    assert held(world) == alone + 1


def test_launchers_that_were_preempted_are_forgotten() -> None:
    world = World(intent(3, replaces=True), total=200)
    world.until_step(7)
    before = held(world)
    for round in range(3):
        world.at(2).stop = StopCause.PREEMPTION
        world.until(RunState.WAITING)
        world.join(2)
        world.until_step(20 + 10 * round)
    world.now += FORGET_SECONDS
    world.pass_time(0.2)
    assert held(world) == before
    assert world.report.restarts == 0
