"""What the operator asked of the API server while all the tests ran, against what the chart lets it ask.

The audit log of the API server is turned into a Role. It has to be the chart's: a right that nobody used is one too
many, one that was refused is one too few. The operator had that Role and no other: everything passes with it alone.
Collected last (conftest.py), and only of worth after the other tests.
"""

import os
from collections.abc import Callable

import pytest
import yaml

from tests.cluster.conftest import BEGAN, RELEASE, ROOT, SYSTEM
from tests.cluster.faults import Faults, audit
from tests.cluster.kube import Object

pytestmark = [pytest.mark.cluster, pytest.mark.serial]

#: (API group, resource or resource/subresource, verb)
Rights = set[tuple[str, str, str]]

#: Only for a run that an API server let in although its rules forbid it (an old one drops CEL); ours never does.
NOT_HERE: Rights = {("everstep.dev", "trainingruns/status", "patch")}

ACCOUNT = f"system:serviceaccount:{SYSTEM}:{RELEASE}"


def asked(events: list[Object]) -> Rights:
    """As RBAC names it. A server-side apply that makes an object needs `create` as well as `patch`."""
    rights: Rights = set()
    for event in events:
        about = event["objectRef"]
        resource = about["resource"] + (f"/{about['subresource']}" if about.get("subresource") else "")
        rights.add((about.get("apiGroup", ""), resource, event["verb"]))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            rights.add((about.get("apiGroup", ""), resource, "create"))
    return rights


def granted(objects: list[Object]) -> Rights:
    rules = [rule for o in objects if o["kind"] in ("ClusterRole", "Role") for rule in o["rules"]]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_of_the_chart_is_what_the_operator_asked_for(
    request: pytest.FixtureRequest, helm: Callable[..., str], operator: None, faults: Faults
) -> None:
    events = [
        event
        for event in audit(faults, BEGAN)
        if event["user"]["username"] == ACCOUNT and "objectRef" in event and event["stage"] == "ResponseComplete"
    ]
    assert events, "the audit log is on"
    values = yaml.safe_load(helm("get", "values", RELEASE, "-n", SYSTEM, "-o", "yaml"))
    scope = values.get("namespaces", [])
    settings = [f"namespaces[{i}]={name}" for i, name in enumerate(scope)]
    settings += [f"{image}.repository={values[image]['repository']}" for image in ("image", "runtimeImage")]
    settings.append("aggregateRoles=false")
    chart = str(ROOT / "charts" / "everstep")
    text = helm("template", RELEASE, chart, "-n", SYSTEM, *(word for s in settings for word in ("--set", s)))
    role = granted([o for o in yaml.safe_load_all(text) if o])
    settled = [event for event in events if event["responseStatus"].get("code") != 403]
    refused = asked([event for event in events if event["responseStatus"].get("code") == 403])
    assert asked(settled) - role == set(), "granted by something else than the chart"
    assert refused - asked(settled) == set(), "asked for and never granted"
    if "EVERSTEP_TESTS_BEGAN" not in os.environ or request.config.getoption("-k"):
        pytest.skip("make cluster-test runs all tests; a right that some of them did not need is not one too many")
    assert role - asked(settled) == NOT_HERE, "granted and never used"
