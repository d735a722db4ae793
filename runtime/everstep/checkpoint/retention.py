"""Which checkpoints stay. Pure."""

from collections.abc import Collection, Iterable, Mapping

from everstep_protocol.checkpoints import CheckpointId, Marker, Retention

#: The newest may turn out damaged when it is read, so there is always one more.
FEWEST = 2


def superseded(
    checkpoints: Iterable[CheckpointId],
    *,
    generation: int,
    resumed_from: CheckpointId | None,
    keep: int,
    forever: Collection[CheckpointId] = (),
) -> list[CheckpointId]:
    """Those that may be deleted, the least useful first.

    The lineage is what this generation wrote and what it resumed from, with that one's elders. Checkpoints in between
    were abandoned by a roll-back (damaged, or written by a generation that lost): they never
    displace one of the lineage.
    """
    lineage_first = sorted(
        checkpoints, key=lambda c: (in_lineage(c, generation=generation, resumed_from=resumed_from), c), reverse=True
    )
    return [c for c in reversed(lineage_first[max(keep, FEWEST) :]) if c not in forever]


def in_lineage(checkpoint: CheckpointId, *, generation: int, resumed_from: CheckpointId | None) -> bool:
    return checkpoint.generation >= generation or (resumed_from is not None and checkpoint <= resumed_from)


def milestones(markers: Mapping[CheckpointId, Marker], retention: Retention) -> set[CheckpointId]:
    """Those of a lineage that stay however many newer ones there are: by step, by time, and the best by the metric.

    What stays now stays at the next look as well, unless it was one of the best and better ones have come.
    """
    stay: set[CheckpointId] = set()
    stretches: set[int] = set()
    last: float | None = None
    for checkpoint, marker in sorted(markers.items()):
        stretch = checkpoint.step // retention.every_steps if retention.every_steps else 0
        if stretch and stretch not in stretches:
            stretches.add(stretch)
            stay.add(checkpoint)
        if retention.every_seconds and (last is None or marker.time >= last + retention.every_seconds):
            last = marker.time
            stay.add(checkpoint)
    if retention.metric:
        sign = 1 if retention.mode == "min" else -1
        scored = [(sign * marker.score, c) for c, marker in markers.items() if marker.score is not None]
        stay.update(checkpoint for _, checkpoint in sorted(scored)[: retention.best])
    return stay


def orphans(data: Iterable[str], markers: Collection[CheckpointId], *, generation: int) -> list[CheckpointId]:
    """Of the names below data/: those that were never completed and never will be, as their generation is over."""
    ids = {found for found in map(CheckpointId.parse, data) if found is not None}
    return sorted(i for i in ids if i not in markers and i.generation < generation)
