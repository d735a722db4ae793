"""The user's command, as `everstep launch` takes it."""

from everstep_operator.api.trainingrun import Spec

_PYTHON = ("python", "python3")


def launch_command(spec: Spec) -> tuple[str, ...]:
    """`python train.py` becomes a script that the launcher runs itself; what is no Python program stays a command."""
    return (
        *("everstep", "launch"),
        *("--nnodes", _nnodes(spec)),
        *("--nproc-per-node", str(spec.ranks_per_node)),
        *_program((*spec.trainer.command, *spec.trainer.args)),
    )


def _nnodes(spec: Spec) -> str:
    return f"{spec.min_nodes}:{spec.max_nodes}" if spec.elastic_policy else str(spec.num_nodes)


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    program, *arguments = command
    if program in _PYTHON:
        if arguments[:1] == ["-u"]:  # the launcher's workers are unbuffered anyway
            del arguments[0]
        if arguments[:1] == ["-m"] and len(arguments) > 1:
            return tuple(arguments)
        if arguments and not arguments[0].startswith("-"):
            return tuple(arguments)
    return ("--no-python", *command)  # another program, or options of the interpreter that the launcher does not know
