"""The agreed step: propose one past the furthest, a later one if a node refuses, commit when all accepted."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from everstep_protocol.messages import Limit, LimitAck, StopCause


@dataclass(frozen=True)
class Agreement:
    limit: Limit
    margin: int  # steps past the furthest; doubles with each refusal, so that fast ranks are caught in a few rounds


def propose(cause: StopCause, furthest: int, proposal: int, margin: int = 1) -> Agreement:
    """A limit that lies past `furthest`, the last step that any rank is known to have entered."""
    return Agreement(Limit(proposal=proposal, step=furthest + margin, committed=False, cause=cause), margin)


def proceed(agreement: Agreement, answers: Collection[LimitAck | None], furthest: int) -> Agreement:
    """The agreement after the nodes' latest answers (None: has not answered at all); itself if nothing changes."""
    limit = agreement.limit
    if limit.committed:
        return agreement
    current = [answer for answer in answers if answer is not None and answer.proposal == limit.proposal]
    if any(not answer.accepted for answer in current):
        furthest = max(furthest, *(answer.max_step for answer in current))
        return propose(limit.cause, furthest, limit.proposal + 1, agreement.margin * 2)
    if len(current) == len(answers):
        return replace(agreement, limit=replace(limit, committed=True))
    return agreement
