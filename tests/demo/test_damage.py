"""Checkpoints that were spoilt behind the run's back: it takes the newest good one, and says so on the screen."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

from everstep_protocol.checkpoints import CheckpointId
from tests.demo.training import Training


class Explosive:
    """A pickle of this touches the file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_it_falls_back_over_all_kinds_of_damage(training: Callable[..., Training], tmp_path: Path) -> None:
    linear = training("--slow-at", "33", every=5, keep=9)
    linear.start()
    linear.until(lambda: linear.status.get("lastCheckpoint", {}).get("step") == 30)
    linear.kill()
    linear.end()
    names = {name.step: name for name in linear.checkpoint_names()}
    assert sorted(names) == [5, 10, 15, 20, 25, 30]

    def marker(step: int) -> Path:
        return linear.checkpoints / names[step].marker_key

    def file(step: int, name: str) -> Path:
        return linear.checkpoints / names[step].data_prefix / name

    marker(30).unlink()  # the newest marker gone
    file(25, "index.json").unlink()  # half written: some files and no marker
    marker(25).unlink()
    shard = file(20, "shard-00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    flipped = bytearray(file(15, "shard-00000.safetensors").read_bytes())
    flipped[-5] ^= 1
    file(15, "shard-00000.safetensors").write_bytes(flipped)
    trap = tmp_path / "executed"
    bomb = pickle.dumps(Explosive(trap))
    for planted in (file(10, "index.json"), file(10, ".metadata"), linear.checkpoints / "data" / ".metadata"):
        planted.write_bytes(bomb)
    newer = CheckpointId(names[30].generation, 0, 99)
    linear.checkpoints.joinpath(newer.marker_key).write_bytes(bomb)

    code, out = linear.run()
    assert code == 0, out
    (told,) = re.findall(r"about the checkpoints: (.*)", out)
    assert "step 99: its marker is damaged" in told
    assert "step 30: it has no marker, so it was never completed" in told
    assert "step 25: it has no marker" in told
    assert re.search(r"step 20: shard-00000\.safetensors is truncated: \d+ of \d+ bytes", told)
    assert "step 15: shard-00000.safetensors has changed since it was written" in told
    assert "step 10: index.json" in told
    assert "resumed from step 5 (" in out
    assert not trap.exists(), "nothing of a pickle was executed"
    assert linear.checkpoint_names()[0].step == 100
