"""What saving 500 MB costs a training: the time that its loop loses, and memory at the peak.

    python benchmarks/checkpoint_save.py [--mb 500] [--rounds 7] [--folder build]

Time: a loop of small steps on one thread, with a save in the middle, in this one process; the ways take turns, and the
figures are medians over the rounds. "waits" is how long the step that saves takes longer than a step, "lost" how much
longer the whole loop takes than one without a save: the writing in the background costs it something as well.
Memory: each way in a process of its own, how far the peak of resident memory (VmHWM) rises over what was there before
the save, as a multiple of the state.

torch.save        the peer: torch.save(state, path), and fsync, as a checkpoint that is to survive has to be
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
from pathlib import Path
from statistics import median

import torch

from everstep.checkpoint import ckpt
from everstep.checkpoint.checkpointer import Checkpointer
from everstep.checkpoint.ckpt_writer import CkptWriter
from everstep.checkpoint.storage import open_storage

#: Makes one save; returns what waits until it is durable.
Save = Callable[[dict[str, torch.Tensor]], Callable[[], None]]
STEPS = 400
BARS = {"ckpt, async": 0.30, "run's checkpoint": 0.30}
MOST_MEMORY = {"ckpt, async": 1.1, "run's checkpoint": 1.1}
MOST_SYNC_MB = 64


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

    yield {"torch.save": by_torch, "ckpt, async": in_background, "ckpt, sync": at_once, "run's checkpoint": of_the_run}
    run.close()


def loop(save: Save | None, state: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds of the loop, and of the call that saves."""
    x, weight = torch.randn(256, 256), torch.randn(256, 256)
    waited, wait = 0.0, None
    began = time.perf_counter()
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
    return seconds, waited


def times(state: dict[str, torch.Tensor], folder: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds (waits, lost) of each way."""
    measured: dict[str, list[tuple[float, float]]] = {}
    with ways(folder) as all_ways:
        for number in range(rounds + 1):
            for name, save in all_ways.items():
                plain, _ = loop(None, state)
                seconds, waited = loop(save, state)
                if number:  # the first round makes buffers and files
                    measured.setdefault(name, []).append((waited, seconds - plain))
    return {name: (median(w for w, _ in found), median(lost for _, lost in found)) for name, found in measured.items()}


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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: where temporary files go)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="checkpoint-save-", dir=args.folder) as name:
        folder = Path(name)
        if args.peak:
            print(peak(args.peak, args.mb, folder))
            return
        found = times(state_of(args.mb), folder, args.rounds)
    peer_waits, peer_lost = found["torch.save"]
    print(f"{args.mb} MB, medians of {args.rounds} rounds; ratios to torch.save in the same rounds")
    print(f"{'':18} {'waits, s':>9} {'ratio':>6} {'lost, s':>9} {'ratio':>6} {'peak, MB':>9} {'of state':>9}")
    for name, (waits, lost) in found.items():
        words = [sys.executable, __file__, "--mb", str(args.mb), "--peak", name]
        words += ["--folder", str(args.folder)] if args.folder else []
        extra = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        bars = [f"waits at most {BARS[name]:.2f}"] if name in BARS else []
        bars += [f"peak at most {MOST_MEMORY[name]}"] if name in MOST_MEMORY else []
        bars += [f"peak at most {MOST_SYNC_MB} MB"] if name == "ckpt, sync" else []
        print(f"{name:18} {waits:9.3f} {waits / peer_waits:6.2f} {lost:9.3f} {lost / peer_lost:6.2f} {extra:9.1f} "
              f"{extra / args.mb:9.2f}  {'; '.join(bars)}")  # fmt: skip


if __name__ == "__main__":
    main()
