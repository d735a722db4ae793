"""Plain torchrun with our rendezvous."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from everstep.launch.places import PortReservation
from everstep_protocol import env

from .harness import PATIENCE, TOKEN, TORCH_SCRIPT, Bench, environment

pytest.importorskip("torch")


def test_torch_finds_the_backend_without_a_warning() -> None:
    """A handler that fails to load is only a warning in torch's log: this test fails on it."""
    code = (
        "import logging, sys\n"
        "records = []\n"
        "class Keep(logging.Handler):\n"
        "    def emit(self, record): records.append(record.getMessage())\n"
        "logging.getLogger().addHandler(Keep(logging.WARNING))\n"
        "import torch.distributed.elastic.rendezvous.registry\n"
        "from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry as known\n"
        "handler = known.create_handler(RendezvousParameters('everstep', '127.0.0.1:1', 'x', 1, 1, token='t'))\n"
        "assert handler.get_backend() == 'everstep' and handler.get_run_id() == 'x'\n"
        "assert not handler.is_closed() and handler.num_nodes_waiting() == 0 and handler.shutdown()\n"
        "print(records)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]", done.stdout
    assert logging.getLevelName(logging.WARNING) not in done.stderr


def test_what_is_missing_is_said() -> None:
    code = (
        "from torch.distributed.elastic.rendezvous import RendezvousParameters\n"
        "from everstep.launch.rendezvous import handler\n"
        "for endpoint, token in (('nowhere', 't'), ('h:1', '')):\n"
        "    try: handler()(RendezvousParameters('everstep', endpoint, 'x', 1, 1, token=token))\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    first, second = done.stdout.splitlines()
    assert "must be host:port" in first
    assert f"set {env.TOKEN}" in second


def test_torchrun_restarts_and_resumes(desk: Bench) -> None:
    port = PortReservation()
    desk.coordinator(port.number, nodes=2)
    script = desk.script(TORCH_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    command += ["--rdzv-backend=everstep", f"--rdzv-endpoint=127.0.0.1:{port.number}", "--rdzv-id=test"]
    command += ["--monitor-interval=0.1", "--local-addr=127.0.0.1", str(script)]
    agents = []
    for number in range(2):
        with (desk.folder / f"agent{number}.log").open("wb") as log:
            settings = environment(**{env.TOKEN: TOKEN, "OMP_NUM_THREADS": "1"})
            agents.append(subprocess.Popen(command, cwd=desk.folder, env=settings, stdout=log, stderr=log))
    desk.others += agents
    logs = [desk.folder / "agent0.log", desk.folder / "agent1.log"]
    statuses = [agent.wait(2 * PATIENCE) for agent in agents]
    said = "\n".join(log.read_text() for log in logs)
    assert statuses == [0, 0], said
    assert sorted(line for line in said.splitlines() if line.startswith("done")) == [
        "done 0 6 resumed",
        "done 1 6 resumed",
    ]
    assert json.loads(Path(desk.folder / "checkpoint.json").read_text()) == {"step": 6}
