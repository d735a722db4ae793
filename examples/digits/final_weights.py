"""Hash the tensors with which a run ended, read from its own checkpoint store. Prints JSON.

    python final_weights.py --state-dir .everstep/default/digits        of `everstep run`
    python final_weights.py --uri s3://bucket/digits                    AWS_… variables say which server that is

Model, optimizer and buffers of the checkpoint that the finished `fit` left, each verified against its marker when it
is read. Two runs whose "sha256" are equal have ended with the same bits.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from everstep.checkpoint.restore import read_marker, read_state
from everstep.checkpoint.storage import Storage, open_storage
from everstep_protocol.checkpoints import MARKERS, CheckpointId, newest_first


def tensors(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a nested state, with its path."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from tensors(value, f"{path}/{index}")


def state(storage: Storage, checkpoint: CheckpointId) -> Any:
    marker = read_marker(storage, checkpoint)
    return read_state(storage, checkpoint, marker, rank=0, world_size=marker.world_size)[0]


def final(uri: str) -> dict[str, Any]:
    """What the run with this checkpoint.uri ended with; the store's address and credentials are in the environment."""
    storage = open_storage(uri)
    checkpoints = newest_first(entry.key for entry in storage.list(MARKERS))
    calls = state(storage, checkpoints[0])["calls"]
    fitted = next(c for c in checkpoints if c.call == 1)  # what the first Trainer call, the fit, ended with
    kept = state(storage, fitted)["checkpoint"]
    digest, count = hashlib.sha256(), 0
    for path, tensor in sorted(tensors({key: kept[key] for key in ("state_dict", "optimizer_states")})):
        digest.update(f"{path} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        count += 1
    (results,) = next(call["result"] for call in calls if call["kind"] == "test")
    return {"checkpoint": fitted.name, "tensors": count, "sha256": digest.hexdigest(), "results": results}


def final_of_local_run(state_dir: Path) -> dict[str, Any]:
    """The same, from the embedded S3 server of a run that is over."""
    from everstep_operator.cluster.s3 import serve

    run = json.loads((state_dir / "run.json").read_text())
    with serve(state_dir) as environment:
        os.environ.update(environment)
        return final(run["spec"]["checkpoint"]["uri"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--state-dir", type=Path, help="of `everstep run`")
    where.add_argument("--uri", help="checkpoint.uri of a run on a cluster")
    args = parser.parse_args()
    json.dump(final(args.uri) if args.uri else final_of_local_run(args.state_dir), sys.stdout)


if __name__ == "__main__":
    main()
