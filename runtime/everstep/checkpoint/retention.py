"""Which checkpoints stay. Pure."""

from collections.abc import Collection, Iterable

from everstep_protocol.checkpoints import CheckpointId

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

    def abandoned(checkpoint: CheckpointId) -> bool:
        return checkpoint.generation < generation and (resumed_from is None or checkpoint > resumed_from)

    lineage_first = sorted(checkpoints, key=lambda c: (not abandoned(c), c), reverse=True)
    return [c for c in reversed(lineage_first[max(keep, FEWEST) :]) if c not in forever]


def orphans(data: Iterable[str], markers: Collection[CheckpointId], *, generation: int) -> list[CheckpointId]:
    """Of the names below data/: those that were never completed and never will be, as their generation is over."""
    ids = {found for found in map(CheckpointId.parse, data) if found is not None}
    return sorted(i for i in ids if i not in markers and i.generation < generation)
