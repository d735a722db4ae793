"""`everstep launch`: torchrun's flags, one node's workers, restarts through the coordinator."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = "start this node's workers, as torchrun does, and keep them going"

#: Flags of torchrun that have no meaning here, and what to do instead. A flag that nothing acts on would be a lie.
REFUSED = {
    "--rdzv-backend": "there is one kind of rendezvous, the coordinator: leave it out",
    "--rdzv-conf": "the rendezvous has no settings: leave it out",
    "--master-addr": "each round has its own address: name the coordinator with --rdzv-endpoint host:port",
    "--master-port": "each round has its own port: name the coordinator with --rdzv-endpoint host:port",
    "--monitor-interval": "a worker's death is noticed at once: leave it out",
    "--start-method": "workers are always fresh interpreters: leave it out",
    "--event-log-handler": "GET /progress and /metrics of the coordinator tell what happens: leave it out",
    "--role": "there is one role, `default`: leave it out",
    "--run-path": "scripts always run as python runs them: leave it out",
    "--redirects": "--log-dir writes the streams of each rank to a file",
    "--tee": "--log-dir writes the streams of each rank to a file and shows those of the first",
    "--local-ranks-filter": "--log-dir shows only the first rank of the node",
    "--duplicate-stdout-filters": "filter the files that --log-dir writes",
    "--duplicate-stderr-filters": "filter the files that --log-dir writes",
    "--logs-specs": "--log-dir writes the streams of each rank to a file",
    "--numa-binding": "start the launcher under numactl",
    "--signals-to-handle": "SIGTERM, SIGHUP and SIGINT always save at an agreed step",
    "--shutdown-timeout": "workers of a failed round are killed at once; the grace of a stop is EVERSTEP_GRACE_SECONDS",
    "--virtual-local-rank": "set CUDA_VISIBLE_DEVICES in the script from LOCAL_RANK",
}
_SHORT = {"--redirects": "-r", "--tee": "-t"}


def add_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ) -> None:
    parser.usage = "everstep launch [flags] [--] script.py [args …] | -m module [args …] | --no-python program [args …]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        f"{HELP}.\n\nWithout a coordinator (EVERSTEP_COORDINATOR or --rdzv-endpoint) a single node starts its own.\n"
        "Every flag can be set by a variable as well: --nproc-per-node is PET_NPROC_PER_NODE, and so on.\n"
        "Workers get OMP_NUM_THREADS=1 and a fixed PYTHONHASHSEED unless these are set."
    )
    parser.epilog = (
        "exit status: 0 done, 1 the run failed, 2 wrong usage;\n"
        "stopped after saving: 85 by the coordinator, 130 by Ctrl-C, 143 by SIGTERM"
    )
    option = _Options(parser, environment)
    option("--nnodes", default="1", type=_nodes, help="nodes of the run: N, or MIN:MAX")
    option(
        "--nproc-per-node",
        default="1",
        type=_workers,
        help="workers on this node: a number, cpu, gpu or auto (gpus, else cpus)",
    )
    option("--node-rank", type=int, help="index of this node in the run (default: EVERSTEP_NODE, or any that is free)")
    option(
        "--rdzv-endpoint",
        type=_endpoint,
        metavar="HOST:PORT",
        help="the run's coordinator (default: EVERSTEP_COORDINATOR)",
    )
    option("--rdzv-id", metavar="ID", help="name of the run, for TORCHELASTIC_RUN_ID and for its seed")
    option("--local-addr", metavar="HOST", help="where other nodes reach this one (default: EVERSTEP_NODE_ADDRESS)")
    option(
        "--max-restarts",
        type=_at_least_zero,
        help="failed rounds that are started again, with an own coordinator (3, but none of a script that raises "
        "before its first step is done)",
    )
    option("--log-dir", type=Path, metavar="FOLDER", help="a file per rank and round; shows only the first rank")
    option("--join-timeout", type=_seconds, default=300.0, metavar="SECONDS",
           help="give up without an answer from the coordinator, while no worker runs (300)")  # fmt: skip
    option.switch("--standalone", help="start an own coordinator, whatever the environment says")
    kind = parser.add_mutually_exclusive_group()
    option.switch("-m", "--module", into=kind, help="run a module, as `python -m` does")
    option.switch("--no-python", into=kind, help="run a program that is no Python script")
    option.switch(
        "--lightning-alias",
        help="`import lightning` and `import pytorch_lightning` are Everstep in the workers, for scripts as they are",
    )
    for flag, instead in REFUSED.items():
        names = [name for name in (_SHORT.get(flag), *_spellings(flag)) if name]
        parser.add_argument(*names, action=_Refuse, instead=instead, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("script", help="script, module or program")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong usage, 85 or 130 or 143: stopped after saving."""
    from everstep.errors import ConfigurationError
    from everstep.launch import settings
    from everstep.launch.agent import Agent, say
    from everstep.launch.output import Output
    from everstep.launch.processes import Spawner

    try:
        chosen, coordinator, command = settings.read(args, os.environ)
        agent = Agent(
            chosen, coordinator, Spawner(command), Output(args.log_dir, remember=chosen.termination_file is not None)
        )
    except (ConfigurationError, OSError) as error:
        say(str(error))
        return 2
    return agent.run()


class _Options:
    """Adds flags in torchrun's two spellings, with PET_* variables as their defaults."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment

    def __call__(self, flag: str, **how: Any) -> None:
        value = self._environment.get(_variable(flag))
        if value is not None:
            how["default"] = value  # argparse applies `type` to a default that is text
        self._parser.add_argument(*_spellings(flag), **how)

    def switch(self, *flags: str, into: Any = None, help: str) -> None:
        value = self._environment.get(_variable(flags[-1]), "0")
        names = [*flags[:-1], *_spellings(flags[-1])]
        on = value.lower() in ("1", "true", "yes")
        (into or self._parser).add_argument(*names, action="store_true", default=on, help=help)


class _Refuse(argparse.Action):
    """A flag of torchrun that we know and do not have."""

    def __init__(self, *args: Any, instead: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instead = instead

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, flag: str | None = None) -> None:
        parser.error(f"torchrun's {flag} is not needed here: {self.instead}")


def _spellings(flag: str) -> list[str]:
    """--nproc-per-node and --nproc_per_node."""
    return list(dict.fromkeys([flag, "--" + flag[2:].replace("-", "_")]))


def _variable(flag: str) -> str:
    return "PET_" + flag[2:].replace("-", "_").upper()


def _nodes(text: str) -> tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not 1 <= numbers[0] <= numbers[-1]:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor MIN:MAX with 1 <= MIN <= MAX")
    return numbers[0], numbers[-1]


def _at_least_zero(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of restarts")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _endpoint(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def _workers(text: str) -> str:
    if text not in ("cpu", "gpu", "auto") and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor cpu, gpu or auto")
    return text
