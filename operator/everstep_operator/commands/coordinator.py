"""`everstep coordinator`: the small service of one run. The operator starts it; on a single node the launcher does."""

import argparse
import os
import signal
import sys
import time

from everstep_protocol import codec, env
from everstep_protocol.messages import Intent

HELP = "the service that one run's launchers talk to (started by the operator)"

PORT = 29400
GRACE_SECONDS = 30.0

_ENDINGS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="", help="address to listen on (default: all, of IPv4 and IPv6)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on, 0: any (default %(default)s)")
    parser.add_argument(
        "--intent", required=True, metavar="JSON", help="what the operator wants, e.g. nodes, min_nodes, max_restarts"
    )


def main(args: argparse.Namespace) -> int:
    # `everstep --help` does not pay for an HTTP server.
    from everstep_operator.coordinator.run import Run
    from everstep_operator.coordinator.server import Server, Service

    token = os.environ.get(env.TOKEN, "")
    if not token:
        return _refuse(f"{env.TOKEN} is not set: give the coordinator the run's token in its environment")
    try:
        grace = float(os.environ.get(env.GRACE_SECONDS, GRACE_SECONDS))
    except ValueError:
        return _refuse(f"{env.GRACE_SECONDS} is {os.environ[env.GRACE_SECONDS]!r}: it has to be a number of seconds")
    try:
        intent = codec.loads(Intent, args.intent)
        now = time.monotonic()
        run = Run(intent, now, epoch=time.time() - now)
    except codec.BadMessage as error:
        return _refuse(f"--intent: {error}")

    # Blocked before any thread begins: the signal waits until this thread asks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    service = Service(run)
    try:
        server = Server(service, args.host, args.port, token)
    except (OSError, OverflowError) as error:
        print(f"everstep coordinator: cannot listen on {args.host}:{args.port}: {error}", file=sys.stderr)
        return 1
    server.start()
    print(f"everstep coordinator: listening on {server.host}:{server.port}", file=sys.stderr, flush=True)
    signal.sigwait(_ENDINGS)
    # The agents agree on the step to save through us: they go first.
    service.wait_alone(grace)
    server.close()
    return 0


def _refuse(sentence: str) -> int:
    print(f"everstep coordinator: {sentence}", file=sys.stderr)
    return 2
