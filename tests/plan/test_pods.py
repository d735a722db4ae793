import pytest

from everstep_operator.plan import pods
from everstep_operator.plan.command import launch_command
from everstep_operator.plan.model import CreatePod, DeletePod
from everstep_protocol import codec, env, labels
from everstep_protocol.checkpoints import Retention
from everstep_protocol.messages import Intent, RunState
from tests.plan.builders import (
    UID,
    all_pods,
    created,
    created_places,
    dead,
    deleted,
    done,
    intent,
    plan,
    pod,
    report,
    run,
    running,
    then,
)

# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "launched"),
    [
        (("python", "train.py", "--lr", "1"), ("train.py", "--lr", "1")),
        (("python3", "-u", "train.py"), ("train.py",)),
        (("python", "-m", "pkg.train", "-v"), ("-m", "pkg.train", "-v")),
        (("python", "-u", "-m", "pkg"), ("-m", "pkg")),
        (("python", "-O", "train.py"), ("--no-python", "python", "-O", "train.py")),
        (("python", "-c", "print()"), ("--no-python", "python", "-c", "print()")),
        (("python",), ("--no-python", "python")),
        (("/opt/python", "train.py"), ("--no-python", "/opt/python", "train.py")),
        (("./train", "x"), ("--no-python", "./train", "x")),
    ],
)
def test_command(command: tuple[str, ...], launched: tuple[str, ...]) -> None:
    said = launch_command(run(2, command=command, numProcPerNode=4).spec)
    assert said == ("everstep", "launch", "--nnodes", "2", "--nproc-per-node", "4", *launched)


def test_args_are_appended_to_the_command() -> None:
    assert launch_command(run(trainer={"args": ["--lr", "1"]}).spec)[-3:] == ("train.py", "--lr", "1")


def test_elastic_bounds_become_a_range() -> None:
    assert launch_command(run(3, min=2, max=5).spec)[2:4] == ("--nnodes", "2:5")


# --- the pods of a new run ------------------------------------------------------------------------------------------


def test_new_run_gets_a_coordinator_and_a_worker_per_node() -> None:
    first = plan(run(3))
    assert created_places(first) == [(None, 1), (0, 1), (1, 1), (2, 1)]
    names = [spec.name for spec in created(first)]
    assert len(set(names)) == 4
    assert all(name.startswith("run-") and len(name) <= 63 for name in names)
    assert names[0].endswith("-coordinator-1")
    assert names[1].endswith("-0-1")
    assert [spec.name for spec in created(plan(run(3)))] == names, "names are deterministic"


def test_names_of_another_run_of_that_name_differ() -> None:
    other = run()
    other = other.model_copy(update={"metadata": other.metadata.model_copy(update={"uid": "other"})})
    assert pods.worker_name(other, 0, 1) != pods.worker_name(run(), 0, 1)


def test_longest_name_fits() -> None:
    longest = run()
    longest = longest.model_copy(update={"metadata": longest.metadata.model_copy(update={"name": "a" * 40})})
    assert len(pods.coordinator_name(longest, 9_999)) <= 63


def test_labels_find_the_pods() -> None:
    coordinator, worker, _ = created(plan(run()))
    assert worker.labels[labels.RUN] == "run"
    assert worker.labels[labels.NODE] == "0"
    assert labels.NODE not in coordinator.labels
    selected = dict(pair.split("=") for pair in plan(run()).status.selector.split(","))
    assert selected.items() <= worker.labels.items()
    assert not selected.items() <= coordinator.labels.items()


def test_environment_of_a_worker() -> None:
    trainer = {"env": [{"name": "LR", "value": "1"}], "workingDir": "/code"}
    checkpoint = {"uri": "s3://b/p", "every": {"steps": 7}, "keep": 2, "resume": "never"}
    checkpoint |= {"endpoint": "http://s3:9000", "region": "eu"}
    worker = created(plan(run(2, trainer=trainer, checkpoint=checkpoint)))[2]
    assert worker.working_dir == "/code"
    seed = worker.env.pop(env.SEED)
    assert 0 <= int(seed) < 2**31
    assert worker.env == {
        "LR": "1",
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "eu",
        env.RUN_NAME: "run",
        env.RUN_NAMESPACE: "team",
        env.RUN_UID: UID,
        env.POD: worker.name,
        env.NODE: "1",
        env.GRACE_SECONDS: "30",
        env.CHECKPOINT_URI: "s3://b/p",
        env.CHECKPOINT_EVERY_STEPS: "7",
        env.CHECKPOINT_KEEP: "2",
        env.CHECKPOINT_RESUME: "never",
    }


def test_what_stays_besides_the_newest_is_told() -> None:
    kept = {"uri": "s3://b/p", "keepEvery": {"steps": 1000}, "keepBest": {"metric": "val_loss", "count": 2}}
    worker = created(plan(run(checkpoint=kept)))[1]
    told = codec.loads(Retention, worker.env[env.CHECKPOINT_RETENTION])
    assert told == Retention(every_steps=1000, metric="val_loss", mode="min", best=2)


def test_without_checkpoint_there_are_no_variables_of_it() -> None:
    assert not [name for name in created(plan(run()))[1].env if "CHECKPOINT" in name or name.startswith("AWS")]


def test_seed_is_that_of_the_name_and_not_of_the_uid() -> None:
    one, again = run(), run()
    again = again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "other"})})
    other = run()
    other = other.model_copy(update={"metadata": other.metadata.model_copy(update={"name": "b"})})
    assert pods.seed(one) == pods.seed(again) != pods.seed(other)


def test_coordinator_gets_the_intent_on_its_command_line() -> None:
    coordinator = created(plan(run(3, min=2, max_restarts=4)))[0]
    assert coordinator.command[:3] == ("everstep", "coordinator", "--intent")
    said = codec.loads(Intent, coordinator.command[3])
    assert (said.nodes, said.min_nodes, said.max_restarts) == (3, 2, 4)
    assert (said.restarts_used, said.first_generation, said.stop, said.run_uid) == (0, 1, None, UID)


# --- which pod holds a place ----------------------------------------------------------------------------------------


def test_nothing_to_do_while_all_is_well() -> None:
    assert plan(running(), all_pods(), report()).actions == ()


def test_pods_of_another_uid_are_not_seen() -> None:
    strangers = all_pods(uid="other")
    assert len(created(plan(run(), strangers))) == 3
    assert deleted(plan(run(), strangers)) == []


def test_report_of_another_uid_is_not_heard() -> None:
    stranger = report(RunState.SUCCEEDED, intent=intent(run_uid="other"))
    assert plan(running(), all_pods(), stranger).status.phase == "Running"


def test_dead_worker_is_replaced_under_the_next_number() -> None:
    after = plan(running(), [pod(None), pod(0), dead(1)], report())
    assert after.actions[0] == DeletePod("run-1-1", "uid-of-run-1-1")
    assert created_places(after) == [(1, 2)]
    assert after.status.attempt == 2


def test_worker_that_vanished_gets_a_name_that_no_pod_ever_had() -> None:
    after = plan(running(), [pod(None), pod(0)], report())
    assert created_places(after) == [(1, 2)]
    assert after.status.restarts.total == 0
    again = plan(then(running(), after), [pod(None), pod(0)], report())
    assert created(again) == created(after), "a crash before the act repeats it under the same name"


def test_terminating_worker_is_waited_for() -> None:
    assert plan(running(), [pod(None), pod(0), pod(1, terminating=True)], report()).actions == ()
    assert plan(running(), [pod(None, terminating=True), pod(0), pod(1)]).actions == ()


def test_dead_coordinator_is_recreated_and_not_counted() -> None:
    before = running()
    before = then(before, plan(before, all_pods(), report(generation=5)))
    after = plan(before, [dead(None), pod(0), pod(1)])
    assert created_places(after) == [(None, 2)]
    assert after.status.restarts.total == 0
    assert after.status.phase == "Running"
    first = codec.loads(Intent, created(after)[0].command[3]).first_generation
    assert first == 6, "later than any generation that ever was"


def test_two_pods_in_one_place_become_one() -> None:
    after = plan(running(), [pod(None), pod(0), pod(1, 1), pod(1, 2)], report())
    assert deleted(after) == ["run-1-1"]
    assert created(after) == []


def test_pod_that_succeeded_waits_for_the_others() -> None:
    assert plan(running(), [pod(None), done(0), pod(1)], report()).actions == ()


def test_nodes_that_are_done_repeat_the_end_if_another_could_not_finish() -> None:
    after = plan(running(), [pod(None), done(0), dead(1)], report())
    assert created_places(after) == [(0, 2), (1, 2)]


def test_deletes_come_before_creates_of_a_place() -> None:
    after = plan(running(), [dead(None), dead(0), dead(1)])
    kinds = [type(action) for action in after.actions]
    assert kinds == [DeletePod, CreatePod] * 3
