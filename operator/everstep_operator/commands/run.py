"""`everstep run`: the manifest that `kubectl apply` would take, reconciled on this machine by the same planner."""

import argparse
import sys
from pathlib import Path

HELP = "run a TrainingRun on this machine, each pod a group of processes"

_DESCRIPTION = """\
Runs the TrainingRun of a manifest to its end, with the planner that a cluster's operator has; a pod is a group of
processes here. Started again it goes on with what it finds: with the same processes if they still run, else from the
last checkpoint. Ctrl-C saves a checkpoint and stops (the same command resumes); Ctrl-C twice leaves at once.
Without an endpoint or credentials for s3:// an embedded S3 server keeps the checkpoints in the state folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.add_argument(
        "-f",
        "--filename",
        required=True,
        metavar="MANIFEST",
        help="file with one TrainingRun, YAML or JSON; - for stdin",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where status, logs and the embedded S3 server's data live (default: .everstep/NAMESPACE/NAME)",
    )
    parser.add_argument(
        "--lease",
        type=float,
        default=40.0,
        metavar="SECONDS",
        help="how long the pods go on after `everstep run` was killed, before they save and end (default: 40)",
    )


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 done, 1 the run failed, 2 usage or manifest, 130 interrupted after saving."""
    try:
        return _main(args)
    except KeyboardInterrupt:  # before anything was started; from then on the run takes the signal
        return 130


def _main(args: argparse.Namespace) -> int:
    from everstep_operator.api.manifest import ManifestError, load, parse
    from everstep_operator.cluster.port import ClusterError
    from everstep_operator.commands.local_run import Refused, run_locally

    if args.lease <= 0:
        return _error(f"--lease {args.lease:g} is no time: give a number of seconds above 0")
    state_dir = args.state_dir
    try:
        if args.filename == "-":
            run, folder = parse(sys.stdin.read(), "stdin"), Path.cwd()
        else:
            run, folder = load(args.filename), Path(args.filename).absolute().parent
        state_dir = state_dir or Path(".everstep", run.metadata.namespace, run.metadata.name)
        return run_locally(run, folder, state_dir, args.lease)
    except (ManifestError, Refused) as error:
        return _error(str(error))
    except ClusterError as error:
        return _error(str(error), status=1)
    except OSError as error:
        where = error.filename or state_dir
        return _error(f"{where}: {error.strerror}; make room or give another --state-dir", status=1)


def _error(message: str, status: int = 2) -> int:
    print(f"everstep run: {message}", file=sys.stderr)
    return status
