"""The report as Prometheus text."""

from collections.abc import Iterable, Mapping

from everstep_protocol.messages import Report, RunState

Sample = tuple[dict[str, str], float]


def render(report: Report, restarts_by_reason: Mapping[str, int]) -> str:
    """Text exposition format 0.0.4. A value that is not known yet has no sample."""
    lines: list[str] = []

    def family(name: str, kind: str, help: str, samples: Iterable[Sample]) -> None:
        lines.append(f"# HELP everstep_run_{name} {help}")
        lines.append(f"# TYPE everstep_run_{name} {kind}")
        lines.extend(f"everstep_run_{name}{_labels(labels)} {_number(value)}" for labels, value in samples)

    def one(value: float | None) -> list[Sample]:
        return [] if value is None else [({}, value)]

    progress, goodput = report.progress, report.goodput
    earlier = report.restarts - sum(restarts_by_reason.values())
    reasons = {**restarts_by_reason, **({"Earlier": earlier} if earlier > 0 else {})}

    family("state", "gauge", "1 for the state that the run is in.",
           [({"state": state}, float(state is report.state)) for state in RunState])  # fmt: skip
    family("generation", "gauge", "Number of the current round; it only grows.", one(report.generation))
    family("world_size", "gauge", "Ranks of the current round; 0 between rounds.", one(report.world_size))
    family("step", "gauge", "Optimizer steps finished.", one(progress.step if progress else None))
    family("max_steps", "gauge", "Optimizer steps wanted.", one(progress.max_steps if progress else None))
    family("epoch", "gauge", "Current epoch.", one(progress.epoch if progress else None))
    family("loss", "gauge", "The latest training loss.", one(progress.loss if progress else None))
    family("samples_per_second", "gauge", "Training throughput of all ranks together.",
           one(progress.samples_per_second if progress else None))  # fmt: skip
    family("step_seconds", "gauge", "Mean duration of the latest optimizer steps, pauses between them included.",
           one(progress.step_seconds if progress else None))  # fmt: skip
    family("learning_rate", "gauge", "Of the optimizer's first parameter group.",
           one(progress.learning_rate if progress else None))  # fmt: skip
    logged = progress.metrics if progress else {}
    family("metric", "gauge", "The latest values that the script logged.",
           [({"name": name}, value) for name, value in sorted(logged.items())])  # fmt: skip
    family("last_checkpoint_step", "gauge", "Step of the newest verified checkpoint.",
           one(report.last_checkpoint.step if report.last_checkpoint else None))  # fmt: skip
    family("last_checkpoint_timestamp_seconds", "gauge", "When the newest verified checkpoint was published.",
           one(report.last_checkpoint.time if report.last_checkpoint else None))  # fmt: skip
    family("last_checkpoint_bytes", "gauge", "Size of the newest verified checkpoint.",
           one(report.last_checkpoint.bytes if report.last_checkpoint else None))  # fmt: skip
    family("last_checkpoint_duration_seconds", "gauge", "From the copy of the state until it was published.",
           one(report.last_checkpoint.seconds if report.last_checkpoint else None))  # fmt: skip
    family("resumed_from_step", "gauge", "Step of the checkpoint that the run last resumed from.",
           one(report.resumed_from.step if report.resumed_from else None))  # fmt: skip
    family("not_durable_since_timestamp_seconds", "gauge", "Since when checkpoints cannot be saved.",
           one(report.not_durable_since))  # fmt: skip
    family("restarts_total", "counter", "Restarts by the reason of the failure; Earlier: by those before this process.",
           [({"reason": reason}, count) for reason, count in sorted(reasons.items())])  # fmt: skip
    family("goodput_ratio", "gauge", "Productive share of the wall time.", one(goodput.ratio))
    family("wall_seconds_total", "counter", "Wall time since the run began.", one(goodput.wall))
    family("productive_seconds_total", "counter", "Time in which new steps were made.", one(goodput.productive))
    family("waiting_seconds_total", "counter", "Time without enough nodes, before the first round.",
           one(goodput.waiting))  # fmt: skip
    family("startup_seconds_total", "counter", "Time from the first round to the first finished step.",
           one(goodput.startup))  # fmt: skip
    family("lost_seconds_total", "counter", "Time from failures until their step was finished again, by reason.",
           [({"reason": reason}, seconds) for reason, seconds in sorted(goodput.lost.items())])  # fmt: skip
    family("member_silence_seconds", "gauge", "Since when a node's launcher has not spoken.",
           [({"node": str(m.node), "pod": m.pod}, m.seconds_silent) for m in report.members])  # fmt: skip
    family("rank_step", "gauge", "The step that a rank has entered.",
           [({"rank": str(r.rank), "node": str(m.node)}, r.step) for m in report.members for r in m.ranks])  # fmt: skip
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    number = float(value)
    if number != number:
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number.is_integer() else repr(number)
