"""What the chart's variables become."""

import argparse
from pathlib import Path

import pytest

from everstep_operator.cluster.render import RenderSettings
from everstep_operator.commands import operate
from everstep_operator.settings import Unusable, from_arguments


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    operate.add_arguments(parser)
    return parser.parse_args(arguments)


ENVIRONMENT = {
    "EVERSTEP_OPERATOR_IMAGE": "operator:1",
    "EVERSTEP_RUNTIME_IMAGE": "runtime:1",
    "EVERSTEP_IMAGE_PULL_POLICY": "Never",
    "EVERSTEP_IMAGE_PULL_SECRETS": "a,b",
    "EVERSTEP_OPERATOR_NAMESPACE": "system",
    "EVERSTEP_MONITORING_NAMESPACES": "prometheus,grafana",
    "EVERSTEP_TOKEN_KEY_FILE": "/key",
    "EVERSTEP_COORDINATOR_PORT": "9000",
}


def test_variables_of_the_chart_shape_pods() -> None:
    settings = from_arguments(parsed(), ENVIRONMENT)
    assert settings.token_key_file == Path("/key")
    assert settings.render == RenderSettings(
        operator_image="operator:1",
        runtime_image="runtime:1",
        image_pull_policy="Never",
        image_pull_secrets=("a", "b"),
        coordinator_port=9000,
        operator_namespace="system",
        monitoring_namespaces=("prometheus", "grafana"),
    )


def test_flags_win_over_variables() -> None:
    assert from_arguments(parsed("--runtime-image", "mine:2"), ENVIRONMENT).render.runtime_image == "mine:2"


def test_without_the_chart_nothing_is_restricted() -> None:
    flags = ("--operator-image", "o", "--runtime-image", "r", "--token-key-file", "/key")
    assert from_arguments(parsed(*flags), {}).render == RenderSettings("o", "r")


@pytest.mark.parametrize("missing", ["EVERSTEP_OPERATOR_IMAGE", "EVERSTEP_TOKEN_KEY_FILE"])
def test_what_is_missing_is_named(missing: str) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != missing}
    with pytest.raises(Unusable, match="--operator-image" if "IMAGE" in missing else "--token-key-file"):
        from_arguments(parsed(), environment)


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(Unusable, match=f"EVERSTEP_COORDINATOR_PORT is {port}"):
        from_arguments(parsed(), ENVIRONMENT | {"EVERSTEP_COORDINATOR_PORT": port})
