"""A training script without torch: it takes steps, tells the board, saves their number, stops where it is told to.

tiny.py --steps 40 [--pause 0.02] [--every 5] [--raise-at 3] [--slow-at 10] [--say 10]
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from everstep.board import Board
from everstep_protocol.codec import encode
from everstep_protocol.messages import CheckpointInfo, Progress, Stage
from everstep_protocol.reasons import EXIT_STOPPED

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--pause", type=float, default=0.02)
parser.add_argument("--every", type=int, default=5)
parser.add_argument("--raise-at", type=int, default=0)
parser.add_argument("--slow-at", type=int, default=0, help="a step that takes a minute")
parser.add_argument("--say", type=int, default=0, help="print every so many steps that one was taken")
args = parser.parse_args()

rank = int(os.environ["RANK"])
generation = int(os.environ["EVERSTEP_GENERATION"])
seat = Board(os.environ["EVERSTEP_BOARD"]).seat(int(os.environ["LOCAL_RANK"]))
uri = os.environ.get("EVERSTEP_CHECKPOINT_URI", "")


def checkpoint(step: int) -> CheckpointInfo:
    world = int(os.environ["WORLD_SIZE"])
    return CheckpointInfo(step=step, uri=f"{uri}/{step}", world_size=world, generation=generation, time=time.time())


def in_s3(body: bytes | None = None) -> bytes | None:
    """The rank's object in the bucket; None if there is none."""
    from obstore.store import S3Store

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(bucket, prefix=prefix, endpoint=endpoint, client_options={"allow_http": True})
    if body is not None:
        store.put(f"rank{rank}.json", body)
        return body
    try:
        return bytes(store.get(f"rank{rank}.json").bytes())
    except FileNotFoundError:
        return None


def save(step: int) -> CheckpointInfo:
    if uri.startswith("s3://"):
        in_s3(json.dumps(step).encode())
        return checkpoint(step)
    path = Path(uri.removeprefix("file://")) / f"rank{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(step))
    temporary.replace(path)
    return checkpoint(step)


def restore() -> int:
    if uri.startswith("s3://"):
        return int(in_s3() or 0)
    path = Path(uri.removeprefix("file://")) / f"rank{rank}.json"
    return int(json.loads(path.read_text())) if path.exists() else 0


def note(step: int) -> None:
    progress = Progress(step=step, max_steps=args.steps, loss=1 / (step + 1), stage="fit")
    seat.note(
        {
            "progress": encode(progress),
            "last_checkpoint": encode(last) if last else None,
            "resumed_from": encode(resumed) if resumed else None,
            "not_durable_since": None,
        }
    )


done = restore()
resumed = last = checkpoint(done) if done else None
print(f"rank {rank} begins at step {done} in generation {generation}", flush=True)
note(done)
seat.stage(Stage.TRAINING)
for step in range(done + 1, args.steps + 1):
    if not seat.enter(step) and seat.wait(step):
        last = save(step - 1)
        note(step - 1)
        print(f"rank {rank} stops after step {step - 1}", flush=True)
        sys.exit(EXIT_STOPPED)
    if step == args.raise_at:
        raise ValueError(f"step {step} is too much")
    time.sleep(60 if step == args.slow_at else args.pause)
    if step % args.every == 0 or step == args.steps:
        last = save(step)
    note(step)
    if args.say and step % args.say == 0:
        print(f"rank {rank} has taken step {step}", flush=True)
seat.stage(Stage.DONE)
print(f"rank {rank} has done {args.steps} steps", flush=True)
