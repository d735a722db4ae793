"""What Everstep adds to a process and around a training: time of import, memory of a fit, memory of a run's helpers.

    python benchmarks/footprint.py [process | run]

process: CPU time of `import everstep` and its Trainer as a ratio to `import torch`, and the peak of resident memory of
a fit over that of the same loop by hand, each in a process of its own; they take turns, figures are medians. Lightning
as a peer, where it is installed.
run: the digits example for a few epochs on three nodes; VmRSS of each of its processes from /proc while it trains (the
largest value seen), and the CPU time that the helpers used per second of the run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import yaml
from bars import verdict

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TICKS = os.sysconf("SC_CLK_TCK")

#: What a process is called in the table, by words of its command line; the first match counts.
KINDS = {
    "everstep run": ("everstep", "run", "-f"),
    "coordinator": ("coordinator", "--intent"),
    "shim": ("cluster/shim.py",),
    "rank": ("everstep.launch.worker",),
    "launcher": ("launch", "--nproc-per-node"),
    "S3 server": ("weed",),
}


@dataclass
class Usage:
    resident: float = 0.0  # MB, the largest seen of one process
    cpu: dict[int, float] = field(default_factory=dict)  # seconds, by pid


def kind_of(command: list[str]) -> str | None:
    for kind, words in KINDS.items():
        if all(any(word in argument for argument in command) for word in words):
            # A shim's command line names only its folder; a coordinator's shim is still a shim.
            return kind
    return None


def processes_of(state: Path) -> dict[int, list[str]]:
    """Command lines of the processes that belong to the run, by their state folder in command line or environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(state) in environment or any(str(state) in argument for argument in command):
            found[int(folder.name)] = command
    return found


def sample(state: Path, usage: dict[str, Usage]) -> None:
    for pid, command in processes_of(state).items():
        kind = kind_of(command)
        if kind is None:
            continue
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        resident = next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)
        usage[kind].resident = max(usage[kind].resident, resident)
        usage[kind].cpu[pid] = (int(stat[11]) + int(stat[12])) / TICKS


IMPORTS = {
    "import torch": "import torch",
    "everstep": "import everstep; everstep.Trainer, everstep.LightningModule",
    "lightning": "import everstep.vision as v; v.watch(); import lightning.pytorch as L; L.Trainer, L.LightningModule",
}
_NET = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
data = DataLoader(TensorDataset(torch.randn(20_000, 32), torch.randn(20_000, 1)), batch_size=100)
def network(): return nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))
def adam(net): return torch.optim.Adam(net.parameters())
"""
_FIT = """
class Module({library}.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss
    def configure_optimizers(self): return adam(self.net)
import os, tempfile
os.chdir(tempfile.mkdtemp())
{library}.Trainer(max_epochs=2, accelerator="cpu").fit(Module(), data)
"""
FITS = {
    "by hand": _NET + """
net = network()
optimizer = adam(net)
for epoch in range(2):
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
""",
    "everstep": "import everstep" + _NET + _FIT.format(library="everstep"),
    "lightning": "import everstep.vision as v; v.watch(); import lightning.pytorch" + _NET
    + _FIT.format(library="lightning.pytorch"),
}  # fmt: skip


def measured(code: str) -> tuple[float, float]:
    """CPU seconds and the peak of resident memory in MB of a fresh interpreter."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"this failed: {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def in_turn(codes: dict[str, str], rounds: int) -> dict[str, tuple[float, float]]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds + 1):
        for name, code in codes.items():
            # Lightning takes several times as long, and is far from any bar: it runs in two rounds.
            if name != "lightning" or (number < 3 and find_spec("lightning")):
                print(f"round {number} of {rounds}: {name}", file=sys.stderr)
                result = measured(code)
                if number:  # the first round warms the file cache
                    found[name].append(result)
    return {name: (median(cpu for cpu, _ in of), median(mb for _, mb in of)) for name, of in found.items()}


def of_a_process() -> None:
    imports = in_turn(IMPORTS, 7)
    torch_cpu, _ = imports["import torch"]
    print(f"{'import':14} {'CPU, s':>8} {'ratio':>6} {'peak, MB':>9}")
    for name, (cpu, mb) in imports.items():
        bar = verdict(cpu / torch_cpu, most=1.10, unit="x") if name == "everstep" else ""
        print(f"{name:14} {cpu:8.2f} {cpu / torch_cpu:6.2f} {mb:9.1f}  {bar}")
    fits = in_turn(FITS, 3)
    print(f"\n{'fit':14} {'peak, MB':>8} {'over it':>8}")
    for name, (_, mb) in fits.items():
        more = mb - fits["by hand"][1]
        bar = verdict(more, most=30, unit=" MB") if name == "everstep" else ""
        print(f"{name:14} {mb:8.1f} {more:8.1f}  {bar}", flush=True)


def of_a_run() -> None:
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        manifest = yaml.safe_load((ROOT / "examples/digits/trainingrun.yaml").read_text())
        manifest["spec"]["trainer"].update(args=["--epochs", "6"], workingDir=str(ROOT / "examples/digits"))
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(manifest))
        state = Path(folder) / "state"
        usage: dict[str, Usage] = defaultdict(Usage)
        began = time.monotonic()
        run = subprocess.Popen(
            [BIN / "everstep", "run", "-f", path, "--state-dir", state],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while run.poll() is None:
            sample(state, usage)
            time.sleep(0.25)
        wall = time.monotonic() - began
        if run.returncode != 0:
            raise SystemExit(f"the run failed:\n{run.stdout.read().decode() if run.stdout else ''}")
    print(f"{'process':14} {'resident, MB':>13} {'CPU s per s':>12} {'processes':>10}")
    for kind in KINDS:
        if kind in usage:
            cpu = sum(usage[kind].cpu.values()) / wall
            print(f"{kind:14} {usage[kind].resident:13.1f} {cpu:12.3f} {len(usage[kind].cpu):10}")


if __name__ == "__main__":
    for part in sys.argv[1:] or ["process", "run"]:
        {"process": of_a_process, "run": of_a_run}[part]()
