"""The one command `everstep`. Its sub-commands come through the entry-point group `everstep.commands`.

A sub-command is a module with `HELP` (one line), `add_arguments(parser)` and `main(args) -> int`. It imports whatever
is heavy inside `main`, so that `everstep --help` stays quick.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

GROUP = "everstep.commands"

EPILOG = "exit status: 0 done, 1 the run failed, 2 wrong usage or manifest, 130 interrupted after saving"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    parser = argparse.ArgumentParser(
        prog="everstep", description="Multi-node PyTorch training that survives failures.", epilog=EPILOG
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # With a command named, only its module is loaded: `everstep launch` must not pay for the others.
    named = arguments[0] if arguments and arguments[0] in commands else None
    for name in [named] if named else sorted(commands):
        module = commands[name].load()
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP, epilog=EPILOG)
        module.add_arguments(subparser)
        subparser.set_defaults(main=module.main)
    args = parser.parse_args(arguments)
    status: int = args.main(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
