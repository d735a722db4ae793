"""A session of `everstep run` whose pods really train."""

import hashlib
from pathlib import Path
from typing import Any

from everstep.checkpoint.restore import read_marker, read_state
from everstep.checkpoint.storage import open_storage
from everstep_protocol.checkpoints import MARKERS, CheckpointId, newest_first
from tests.run.session import Session

LINEAR = Path(__file__).with_name("linear.py")


class Training(Session):
    """linear.py on `nodes` nodes with a rank each, checkpoints in a folder."""

    def __init__(self, folder: Path, *args: str, nodes: int = 1, every: int = 5, keep: int = 2, **options: Any):
        options = {
            "trainer": {"command": ["python", str(LINEAR)], "args": list(args)},
            "checkpoint": {"uri": f"file://{folder / 'checkpoints'}", "every": {"steps": every}, "keep": keep},
            **options,
        }
        super().__init__(folder, nodes=nodes, **options)

    def checkpoint_names(self) -> list[CheckpointId]:
        """Of the complete ones, newest first."""
        storage = open_storage(f"file://{self.checkpoints}")
        return newest_first(entry.key for entry in storage.list(MARKERS))

    def weights(self) -> str:
        """SHA-256 of the model and the optimizer with which the fit ended."""
        storage = open_storage(f"file://{self.checkpoints}")
        final = next(name for name in self.checkpoint_names() if name.call == 1)
        marker = read_marker(storage, final)
        state, _ = read_state(storage, final, marker, 0, marker.world_size)
        state = state["checkpoint"]
        moments = state["optimizer_states"][0]["state"]
        digest = hashlib.sha256()
        for tensor in [*state["state_dict"].values(), *(moment["exp_avg"] for _, moment in sorted(moments.items()))]:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
