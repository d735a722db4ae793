"""Flags, variables, and what is refused."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from everstep.errors import ConfigurationError
from everstep.launch import command, settings
from everstep.launch.agent import _STOPPED_BY
from everstep.launch.coordinators import GivenCoordinator, OwnCoordinator
from everstep_protocol import env
from everstep_protocol.reasons import EXIT_STOPPED

from .harness import environment

GIVEN = {env.COORDINATOR: "http://10.0.0.1:29400", env.TOKEN: "t"}


def parse(*words: str, variables: dict[str, str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="everstep launch", exit_on_error=False)
    command.add_arguments(parser, variables or {})
    return parser.parse_args(list(words))


def read(*words: str, **variables: str) -> settings.Settings:
    return settings.read(parse(*words), variables)[0]


@pytest.mark.parametrize("dash", ["-", "_"])
def test_both_spellings(dash: str) -> None:
    words = [
        "--nproc-per-node=4",
        "--node-rank=2",
        "--rdzv-endpoint=h:1",
        "--rdzv-id=x",
        "--local-addr=a",
        "--log-dir=l",
    ]
    args = parse(*("--" + word[2:].replace("-", dash) for word in words), "train.py")
    assert (args.nproc_per_node, args.node_rank, args.rdzv_endpoint, args.rdzv_id) == ("4", 2, "h:1", "x")
    assert (args.local_addr, args.log_dir) == ("a", Path("l"))


def test_every_flag_has_a_variable() -> None:
    variables = {
        "PET_NNODES": "2:4",
        "PET_NPROC_PER_NODE": "3",
        "PET_NODE_RANK": "1",
        "PET_RDZV_ENDPOINT": "h:1",
        "PET_RDZV_ID": "x",
        "PET_LOCAL_ADDR": "a",
        "PET_MAX_RESTARTS": "7",
        "PET_LOG_DIR": "l",
        "PET_JOIN_TIMEOUT": "9",
        "PET_STANDALONE": "1",
        "PET_NO_PYTHON": "1",
        "PET_LIGHTNING_ALIAS": "1",
    }
    args = parse("prog", variables=variables)
    assert (args.nnodes, args.nproc_per_node, args.node_rank, args.max_restarts) == ((2, 4), "3", 1, 7)
    assert (args.rdzv_endpoint, args.rdzv_id, args.local_addr, args.log_dir) == ("h:1", "x", "a", Path("l"))
    assert (args.join_timeout, args.standalone, args.no_python, args.module) == (9.0, True, True, False)
    assert args.lightning_alias is True
    assert parse("--nnodes=1", "prog", variables=variables).nnodes == (1, 1), "a flag beats its variable"
    known = {
        a.dest for a in parser_actions() if a.dest not in ("help", "script", "args") and a.help != argparse.SUPPRESS
    }
    assert {f"PET_{dest.upper()}" for dest in known} - {"PET_MODULE"} == set(variables)


def parser_actions() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, {})
    return parser._actions


@pytest.mark.parametrize(
    ("words", "kind", "target", "arguments"),
    [
        (["train.py", "--lr", "1", "-m", "x"], "script", "train.py", ["--lr", "1", "-m", "x"]),
        (["--", "train.py", "--nnodes", "7", "--", "x"], "script", "train.py", ["--nnodes", "7", "--", "x"]),
        (["-m", "pack.train", "--lr", "1"], "module", "pack.train", ["--lr", "1"]),
        (["--module", "pack.train"], "module", "pack.train", []),
        (["--no-python", "bash", "-c", "exit 3"], "program", "bash", ["-c", "exit 3"]),
    ],
)
def test_what_is_run(words: list[str], kind: str, target: str, arguments: list[str]) -> None:
    chosen = settings.read(parse(*words), {})[2]
    assert (chosen.kind, chosen.target, list(chosen.arguments)) == (kind, target, arguments)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nnodes=x", "t.py"], "neither a number nor MIN:MAX"),
        (["--nnodes=4:2", "t.py"], "MIN:MAX with 1 <= MIN <= MAX"),
        (["--nnodes=0", "t.py"], "1 <= MIN"),
        (["--nproc-per-node=many", "t.py"], "cpu, gpu or auto"),
        (["--nproc-per-node=0", "t.py"], "above 0"),
        (["--rdzv-endpoint=host", "t.py"], "not HOST:PORT"),
        (["--max-restarts=-1", "t.py"], "restarts"),
        (["--join-timeout=0", "t.py"], "seconds"),
        (["-m", "--no-python", "t.py"], "not allowed with"),
        ([], "required: script"),
    ],
)
def test_wrong_usage(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentError)) as leaving:
        parse(*words)
    assert says in capsys.readouterr().err + str(leaving.value)


@pytest.mark.parametrize("flag", sorted(command.REFUSED))
def test_flags_that_we_do_not_have_say_what_to_do(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(flag, "1", "train.py")
    assert leaving.value.code == 2
    assert command.REFUSED[flag] in capsys.readouterr().err


def test_torchruns_flags_are_all_known() -> None:
    """Against torchrun's own parser: each flag is either ours or refused with a way out."""
    pytest.importorskip("torch")
    code = (
        "from torch.distributed.run import get_args_parser\n"
        "print(*(o for a in get_args_parser()._actions for o in a.option_strings))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    theirs = set(done.stdout.split())
    ours = {option for action in parser_actions() for option in action.option_strings}
    assert {"--nnodes", "--nproc_per_node", "-t"} <= theirs
    assert theirs - ours == set()


def test_a_given_coordinator() -> None:
    chosen, coordinator, _ = settings.read(parse("t.py"), {**GIVEN, env.NODE: "2", env.NODE_ADDRESS: "10.0.0.9"})
    assert isinstance(coordinator, GivenCoordinator)
    assert (coordinator.url, coordinator.token) == ("http://10.0.0.1:29400", "t")
    assert (chosen.node, chosen.address, chosen.run_id) == (2, "10.0.0.9", "none")
    assert chosen.environment[env.COORDINATOR] == coordinator.url, "workers ask it for grants"


def test_the_endpoint_beats_the_environment() -> None:
    words = ["--rdzv-endpoint", "127.0.0.1:77", "--node-rank", "4", "t.py"]
    chosen, coordinator, _ = settings.read(parse(*words), GIVEN)
    assert coordinator.url == "http://127.0.0.1:77"
    assert (chosen.node, chosen.address) == (4, "127.0.0.1")


def test_an_own_coordinator() -> None:
    chosen, coordinator, _ = settings.read(parse("--max-restarts=0", "--standalone", "t.py"), GIVEN)
    assert isinstance(coordinator, OwnCoordinator)
    assert coordinator.url.startswith("http://127.0.0.1:")
    assert coordinator.token not in ("", "t")
    assert (chosen.node, chosen.max_restarts) == (0, 0)
    assert chosen.environment[env.TOKEN] == coordinator.token
    assert read("t.py").max_restarts == settings.DEFAULT_RESTARTS
    assert read("t.py").run_id != read("t.py").run_id, "each standalone run is its own"


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (["--nnodes=2", "t.py"], {}, "name it with --rdzv-endpoint"),
        (["--nnodes=1:3", "t.py"], {}, "name it with --rdzv-endpoint"),
        (["--nnodes=2", "--standalone", "t.py"], GIVEN, "--standalone is for one"),
        (["--rdzv-endpoint=h:1", "t.py"], {}, f"set {env.TOKEN}"),
        (["--max-restarts=2", "t.py"], GIVEN, "the budget is the coordinator's"),
        (["t.py"], {env.COORDINATOR: "10.0.0.1:1", env.TOKEN: "t"}, "is not http://host:port"),
        (["t.py"], {**GIVEN, env.NODE: "first"}, "'first' is no node index"),
        (["t.py"], {env.GRACE_SECONDS: "long"}, "'long' is no number of seconds"),
    ],
)
def test_what_does_not_fit_together(words: list[str], variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        settings.read(parse(*words), variables)


def test_workers_by_name() -> None:
    assert settings.workers_here("3", {}) == 3
    cpus = settings.workers_here("cpu", {})
    assert cpus >= 1
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert settings.workers_here("auto", hidden) == cpus
    with pytest.raises(ConfigurationError, match="no NVIDIA device is visible"):
        settings.workers_here("gpu", hidden)


def test_launching_loads_no_torch() -> None:
    code = (
        "import sys, everstep.launch.command, everstep.launch.agent, everstep.launch.worker, everstep.board\n"
        "assert not {'torch', 'numpy', 'everstep_operator', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_help_names_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    told = capsys.readouterr().out.rpartition("exit status:")[2]
    assert {int(word) for word in told.split() if word.isdecimal()} == {0, 1, 2, EXIT_STOPPED, *_STOPPED_BY.values()}
