"""What Prometheus reads."""

import re

from everstep_operator.coordinator.metrics import render
from everstep_protocol.messages import CheckpointInfo, Goodput, Member, Progress, RankState, Report, RunState, Workers

SAMPLE = re.compile(r'^([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? (\S+)$')

REPORT = Report(
    protocol=1,
    state=RunState.RUNNING,
    generation=2,
    world_size=3,
    restarts=3,
    members=(Member(1, "a", 'pod "1"\n\\', "10.0.0.1", Workers.RUNNING, 2, (RankState(1, 7, 42),), 0.25),),
    progress=Progress(
        step=41,
        max_steps=100,
        loss=float("nan"),
        metrics={"val/acc": 0.5, "grad_2.0_norm_total": 3.5},
        step_seconds=0.25,
        learning_rate=0.125,
        samples_per_second=16.0,
    ),
    last_checkpoint=CheckpointInfo(40, "s3://b/p", 3, 2, 1e9, bytes=4096, seconds=1.5),
    goodput=Goodput(10.0, 6.0, 1.0, 1.0, {"Killed": 2.0}),
)


def parse(text: str) -> dict[str, float]:
    """Sample (with its labels) -> value; fails on a line that is neither a comment nor a sample."""
    samples: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            match = SAMPLE.match(line)
            assert match, line
            assert match[1] in typed
            assert match[1] + (match[2] or "") not in samples
            samples[match[1] + (match[2] or "")] = float(match[3])
    return samples


def test_all_that_a_dashboard_wants() -> None:
    text = render(REPORT, {"Killed": 2})
    samples = parse(text)
    assert samples["everstep_run_step"] == 41
    assert samples["everstep_run_generation"] == 2
    assert samples["everstep_run_world_size"] == 3
    assert samples["everstep_run_last_checkpoint_step"] == 40
    assert samples["everstep_run_goodput_ratio"] == 0.6
    assert samples['everstep_run_lost_seconds_total{reason="Killed"}'] == 2
    assert samples['everstep_run_restarts_total{reason="Killed"}'] == 2
    assert samples['everstep_run_restarts_total{reason="Earlier"}'] == 1
    assert samples['everstep_run_state{state="running"}'] == 1
    assert samples['everstep_run_state{state="failed"}'] == 0
    assert samples['everstep_run_metric{name="val/acc"}'] == 0.5
    assert samples['everstep_run_rank_step{rank="1",node="1"}'] == 42
    assert samples["everstep_run_loss"] != samples["everstep_run_loss"]
    assert 'pod="pod \\"1\\"\\n\\\\"' in text


def test_s77_what_the_training_tells() -> None:
    samples = parse(render(REPORT, {"Killed": 2}))
    expected = {
        "step_seconds": 0.25, "learning_rate": 0.125, "samples_per_second": 16.0, "world_size": 3,
        'metric{name="grad_2.0_norm_total"}': 3.5, "last_checkpoint_bytes": 4096,
        "last_checkpoint_duration_seconds": 1.5, 'restarts_total{reason="Killed"}': 2,
    }  # fmt: skip
    assert {name: samples[f"everstep_run_{name}"] for name in expected} == expected


def test_parts_of_the_wall_time_add_up() -> None:
    samples = parse(render(REPORT, {}))
    parts = [name for name in samples if "_seconds_total" in name and "wall" not in name]
    assert sum(samples[name] for name in parts) == samples["everstep_run_wall_seconds_total"]


def test_what_is_not_known_has_no_sample() -> None:
    text = render(Report(protocol=1, state=RunState.WAITING, generation=0, world_size=0, restarts=0), {})
    assert "everstep_run_step" not in parse(text)
    assert "# TYPE everstep_run_step gauge" in text


def test_each_family_is_explained_once() -> None:
    helps = [line.split()[2] for line in render(REPORT, {}).splitlines() if line.startswith("# HELP ")]
    assert len(helps) == len(set(helps))
