"""Whose prefix this is. Two runs that write to one prefix would prune each other's checkpoints."""

from everstep.checkpoint.storage import Body, Storage, read
from everstep.errors import ConfigurationError
from everstep_protocol import codec
from everstep_protocol.checkpoints import OWNER_KEY, Owner


def claim(storage: Storage, me: Owner) -> Owner:
    """Take the prefix, or find that it is already ours. Returns the owner on record: of another uid if the run was
    created anew under the same name.

    Raises:
        ConfigurationError: it belongs to another run.
    """
    try:
        storage.put(OWNER_KEY, Body.of(codec.dumps(me)), create_only=True)
        return me
    except FileExistsError:
        pass
    try:
        owner = codec.loads(Owner, read(storage, OWNER_KEY))
    except codec.BadMessage as error:
        raise ConfigurationError(
            f"{storage.uri}/{OWNER_KEY} says whose checkpoints these are, but cannot be read ({error}). "
            f"If the checkpoints are this run's, delete that file; else choose another checkpoint uri"
        ) from None
    if (owner.namespace, owner.name) != (me.namespace, me.name):
        raise ConfigurationError(
            f"checkpoint uri {storage.uri} belongs to {_who(owner)}, and this is {_who(me)}: give this run a uri of "
            f"its own, or delete {OWNER_KEY} there if that run is over and this one shall go on from its checkpoints"
        )
    return owner


def _who(owner: Owner) -> str:
    if not owner.name:
        return "a script that belongs to no run"
    place = f"{owner.namespace}/" if owner.namespace else ""
    return f"run {place}{owner.name} (uid {owner.uid or 'unknown'})"
