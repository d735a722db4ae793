"""What Prometheus is told."""

import pytest

from everstep_operator.metrics import Metrics
from tests.plan.builders import running


@pytest.mark.parametrize("leads", [True, False])
def test_runs_are_told_by_the_leader_so_that_a_sum_over_all_operators_counts_each_once(leads: bool) -> None:
    metrics = Metrics()
    metrics.watch(lambda: [running()], lambda: 0, lambda: leads, dict)
    text = metrics.text().decode()
    assert f"everstep_leader {float(leads)}" in text
    assert ('everstep_runs{phase="Running"} 1.0' in text) == leads
    assert ('everstep_run_nodes_ready{namespace="team",run="run"} 2.0' in text) == leads
