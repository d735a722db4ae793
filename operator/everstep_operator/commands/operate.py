"""`everstep operator`: reconciles the TrainingRuns of a cluster. The chart runs it in a Deployment."""

import argparse
import logging
import sys
from pathlib import Path

HELP = "reconcile the TrainingRuns of a Kubernetes cluster (the chart runs this)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="act in this namespace only; may be repeated (default: the whole cluster)",
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the cluster (default: as a pod, or what kubectl uses)"
    )
    parser.add_argument(
        "--operator-image", metavar="IMAGE", help="what coordinators run (default: $EVERSTEP_OPERATOR_IMAGE)"
    )
    parser.add_argument(
        "--runtime-image",
        metavar="IMAGE",
        help="for runs that name no trainer.image (default: $EVERSTEP_RUNTIME_IMAGE)",
    )
    parser.add_argument(
        "--token-key-file",
        type=Path,
        metavar="FILE",
        help="16 secret bytes or more that the tokens of runs are made from (default: $EVERSTEP_TOKEN_KEY_FILE)",
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="for /healthz, /readyz and /metrics, 0: any (default %(default)s)"
    )
    parser.add_argument("--verbose", action="store_true", help="log more, kopf's own lines included")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 asked to end, 1 cannot be started, 2 usage."""
    # `everstep --help` does not pay for kopf and a Kubernetes client.
    import asyncio

    from everstep_operator import handlers, settings
    from everstep_operator.cluster.port import ClusterError

    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(logging.DEBUG if args.verbose else logging.CRITICAL)
    try:
        asyncio.run(handlers.run(settings.from_arguments(args)))
    except settings.Unusable as error:
        print(f"everstep operator: {error}", file=sys.stderr)
        return 2
    except (ClusterError, OSError) as error:
        print(f"everstep operator: {error}", file=sys.stderr)
        return 1
    return 0
