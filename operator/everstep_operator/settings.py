"""What the operator is told when it starts: flags, or the environment variables that the chart sets."""

import argparse
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from everstep_operator.cluster.render import RenderSettings

NAME = "EVERSTEP_OPERATOR_NAME"
NAMESPACE = "EVERSTEP_OPERATOR_NAMESPACE"
POD = "EVERSTEP_OPERATOR_POD"
OPERATOR_IMAGE = "EVERSTEP_OPERATOR_IMAGE"
RUNTIME_IMAGE = "EVERSTEP_RUNTIME_IMAGE"
PULL_POLICY = "EVERSTEP_IMAGE_PULL_POLICY"
PULL_SECRETS = "EVERSTEP_IMAGE_PULL_SECRETS"
MONITORING_NAMESPACES = "EVERSTEP_MONITORING_NAMESPACES"
COORDINATOR_PORT = "EVERSTEP_COORDINATOR_PORT"
TOKEN_KEY_FILE = "EVERSTEP_TOKEN_KEY_FILE"


class Unusable(Exception):
    """The settings do not fit together; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    namespaces: tuple[str, ...]  # the only ones that are looked at; none: the whole cluster
    kubeconfig: str | None  # None: the pod's service account, or what kubectl uses
    token_key_file: Path
    render: RenderSettings
    lease_name: str
    lease_namespace: str
    holder: str  # this very process
    host: str = ""  # probes and metrics are answered there
    port: int = 8080


def from_arguments(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises Unusable."""
    key_file = args.token_key_file or environ.get(TOKEN_KEY_FILE)
    if not key_file:
        raise Unusable(
            "no key for the tokens of runs: give --token-key-file FILE; "
            "`head -c 32 /dev/urandom | base64 > FILE` makes one, and all operators of a cluster share it"
        )
    images = {}
    for flag, variable, given in (
        ("--operator-image", OPERATOR_IMAGE, args.operator_image),
        ("--runtime-image", RUNTIME_IMAGE, args.runtime_image),
    ):
        images[flag] = given or environ.get(variable, "")
        if not images[flag]:
            raise Unusable(f"no image: give {flag} IMAGE or set {variable}")
    own_namespace = environ.get(NAMESPACE)
    return Settings(
        namespaces=tuple(dict.fromkeys(args.namespace)),
        kubeconfig=args.kubeconfig,
        token_key_file=Path(key_file),
        render=RenderSettings(
            operator_image=images["--operator-image"],
            runtime_image=images["--runtime-image"],
            image_pull_policy=environ.get(PULL_POLICY) or None,
            image_pull_secrets=_names(environ.get(PULL_SECRETS)),
            coordinator_port=_port(environ),
            operator_namespace=own_namespace,
            monitoring_namespaces=_names(environ.get(MONITORING_NAMESPACES)),
        ),
        lease_name=environ.get(NAME, "everstep"),
        lease_namespace=own_namespace or (args.namespace[0] if args.namespace else "default"),
        holder=f"{environ.get(POD) or socket.gethostname()}-{uuid.uuid4().hex[:8]}",
        port=args.port,
    )


def _port(environ: Mapping[str, str]) -> int:
    given = environ.get(COORDINATOR_PORT) or str(RenderSettings.coordinator_port)
    if not given.isdecimal() or not 0 < int(given) < 65_536:
        raise Unusable(f"{COORDINATOR_PORT} is {given}: it has to be a port, 1 to 65535")
    return int(given)


def _names(joined: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (joined or "").split(",")))
