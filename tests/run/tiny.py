"""A training script without torch: it takes steps, tells the board, saves its step, stops where it is told to.

tiny.py --steps 40 [--pause 0.02] [--every 5] [--raise-at 3] [--slow-at 10]
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
args = parser.parse_args()

rank = int(os.environ["RANK"])
generation = int(os.environ["EVERSTEP_GENERATION"])
seat = Board(os.environ["EVERSTEP_BOARD"]).seat(int(os.environ["LOCAL_RANK"]))
uri = os.environ.get("EVERSTEP_CHECKPOINT_URI", "file:///dev/null/nowhere")
saved_in = Path(uri.removeprefix("file://")) / f"rank{rank}.json"


def checkpoint(step: int) -> CheckpointInfo:
    world = int(os.environ["WORLD_SIZE"])
    return CheckpointInfo(step=step, uri=f"{uri}/{step}", world_size=world, generation=generation, time=time.time())


def save(step: int) -> CheckpointInfo:
    saved_in.parent.mkdir(parents=True, exist_ok=True)
    temporary = saved_in.with_suffix(".new")
    temporary.write_text(json.dumps(step))
    temporary.replace(saved_in)
    return checkpoint(step)


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


done = json.loads(saved_in.read_text()) if saved_in.exists() else 0
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
    if uri.startswith("file:///dev/null"):
        last = None
    elif step % args.every == 0 or step == args.steps:
        last = save(step)
    note(step)
seat.stage(Stage.DONE)
print(f"rank {rank} has done {args.steps} steps", flush=True)
