"""What saving 500 MB costs a training: the time that its loop loses, CPU time, and memory at the peak.

    python benchmarks/checkpoint_save.py [--mb 500] [--rounds 5] [--folder build]

Time: a loop of small steps on one thread, with a save in the middle, in this one process; the ways take turns, and the
figures are medians over the rounds. "waits" is how long the call that saves takes; "lost" is how much longer the whole
loop takes than one without a save, since the writing in the background costs it something as well; "CPU" is what all
threads use for a save until it is on the disk. Memory: each way in a process of its own, how far the peak of resident
memory (VmHWM) rises over what was there before the save.

torch.save        the peer: torch.save(state, path), and fsync, as a checkpoint that is to survive has to be
Lightning         its TorchCheckpointIO, where it is installed; without fsync
ckpt, async       a .ckpt file as ModelCheckpoint writes it
ckpt, sync        Trainer.save_checkpoint: the file is there when it returns
run's checkpoint  what a TrainingRun recovers from
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from bars import verdict

import everstep.vision
from everstep.checkpoint import ckpt
from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.ckpt_writer import CkptWriter
from everstep.checkpoint.storage import open_storage

#: Makes one save; returns what waits until it is durable.
Save = Callable[[dict[str, torch.Tensor]], Callable[[], None]]
STEPS = 400
MOST_LOST = 0.30  # of what torch.save costs the loop
MOST_PEAK_ASYNC, MOST_PEAK_SYNC_MB = 1.1, 64  # of the state; of any
ASYNC = ("ckpt, async", "run's checkpoint")


class Cost(NamedTuple):
    """Seconds."""

    waits: float
    lost: float
    cpu: float


def state_of(megabytes: int) -> dict[str, torch.Tensor]:
    return {f"layer{number}.weight": torch.randn(megabytes * 250_000 // 20) for number in range(20)}


@contextlib.contextmanager
def ways(folder: Path) -> Iterator[dict[str, Save]]:
    writer = CkptWriter()
    run = Checkpointer(open_storage((folder / "run").as_uri()))
    run.open()
    count = 0

    def by_torch(state: dict[str, torch.Tensor]) -> Callable[[], None]:
        with (folder / "torch.pt").open("wb") as file:
            torch.save({"state_dict": state}, file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: None

    def in_background(state: dict[str, torch.Tensor]) -> Callable[[], None]:
        writer.save([str(folder / "async.ckpt")], {"state_dict": state})
        return writer.wait

    def at_once(state: dict[str, torch.Tensor]) -> Callable[[], None]:
        ckpt.write(str(folder / "sync.ckpt"), *ckpt.data_of({"state_dict": state}))
        return lambda: None

    def of_the_run(state: dict[str, torch.Tensor]) -> Callable[[], None]:
        nonlocal count
        count += 1
        run.save(0, count, {"state_dict": state}, {})
        return run.wait

    found: dict[str, Save] = {"torch.save": by_torch}
    if find_spec("lightning"):
        everstep.vision.watch()  # torchmetrics, which it imports, meets a torchvision of another build of torch
        from lightning.pytorch.plugins.io import TorchCheckpointIO

        plugin = TorchCheckpointIO()

        def by_lightning(state: dict[str, torch.Tensor]) -> Callable[[], None]:
            plugin.save_checkpoint({"state_dict": state}, folder / "lightning.ckpt")
            return lambda: None

        found["Lightning"] = by_lightning
    yield {**found, "ckpt, async": in_background, "ckpt, sync": at_once, "run's checkpoint": of_the_run}
    run.close()


def loop(save: Save | None, state: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    """Seconds of the loop and of the call that saves, and of CPU until the save is durable."""
    x, weight = torch.randn(256, 256), torch.randn(256, 256)
    waited, wait = 0.0, None
    began, used = time.perf_counter(), time.process_time()
    for step in range(STEPS):
        for _ in range(6):
            x = torch.tanh(x @ weight)
        if step == STEPS // 4 and save is not None:
            before = time.perf_counter()
            wait = save(state)
            waited = time.perf_counter() - before
    seconds = time.perf_counter() - began
    if wait is not None:
        wait()
    return seconds, waited, time.process_time() - used


def costs(state: dict[str, torch.Tensor], folder: Path, rounds: int) -> dict[str, Cost]:
    measured: dict[str, list[Cost]] = {}
    with ways(folder) as all_ways:
        for number in range(rounds + 1):
            for name, save in all_ways.items():
                plain, _, plain_cpu = loop(None, state)
                seconds, waited, cpu = loop(save, state)
                if number:  # the first round makes buffers and files
                    measured.setdefault(name, []).append(Cost(waited, seconds - plain, cpu - plain_cpu))
                print(f"round {number} of {rounds}: {name}", file=sys.stderr)
    return {name: Cost(*map(median, zip(*found, strict=True))) for name, found in measured.items()}


def peak(name: str, megabytes: int, folder: Path) -> float:
    """MB by which the peak rises. In this process, which is to do nothing else."""
    state = state_of(megabytes)
    with ways(folder) as all_ways:
        tiny = {"weight": torch.randn(1000)}
        all_ways[name](tiny)()  # what is imported and started only once
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        all_ways[name](state)()
        return _resident("VmHWM") - before


def _resident(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: where temporary files go)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="checkpoint-save-", dir=args.folder) as name:
        folder = Path(name)
        if args.peak:
            print(peak(args.peak, args.mb, folder))
            return
        found = costs(state_of(args.mb), folder, args.rounds)
    peer = found["torch.save"]
    print(f"{args.mb} MB, medians of {args.rounds} rounds; ratios to torch.save in the same rounds")
    print(f"{'':18} {'waits, s':>9} {'ratio':>6} {'lost, s':>9} {'ratio':>6} {'CPU, s':>7} {'peak, MB':>9}")
    for name, cost in found.items():
        words = [sys.executable, __file__, "--mb", str(args.mb), "--peak", name]
        words += ["--folder", str(args.folder)] if args.folder else []
        extra = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        ratio = cost.lost / peer.lost
        bars = []
        if name in ASYNC:
            bars = [f"lost: {verdict(ratio, most=MOST_LOST, unit='x')}"]
            bars += [f"peak: {verdict(extra / args.mb, most=MOST_PEAK_ASYNC, unit=' of the state')}"]
        elif name == "ckpt, sync":
            bars = [f"peak: {verdict(extra, most=MOST_PEAK_SYNC_MB, unit=' MB')}"]
        print(
            f"{name:18} {cost.waits:9.3f} {cost.waits / peer.waits:6.2f} {cost.lost:9.3f} {ratio:6.2f} "
            f"{cost.cpu:7.2f} {extra:9.1f}  {'; '.join(bars)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
