"""Nothing in this package can execute what it reads, and importing it costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import everstep.checkpoint

SOURCES = sorted(Path(everstep.checkpoint.__file__).parent.glob("*.py"))
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__",
    "torch.load", "torch.save", "torch.jit.load", "numpy.load", "np.load",
    "torch.distributed.broadcast_object_list", "torch.distributed.gather_object",
    "torch.distributed.scatter_object_list", "torch.distributed.all_gather_object",
}  # fmt: skip


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in FORBIDDEN_CALLS:
            found.append(ast.unparse(node))
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS or name.endswith(".filesystem"):
                found.append(name)
    return found


#: What one-file checkpoints need: torch's format, read as data alone (tests/layout sees to weights_only=True).
ALLOWED = {"ckpt.py": {"pickle", "pickle.UnpicklingError", "torch.load", "torch.save"}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_pickle(path: Path) -> None:
    if path.name != "trusted.py":  # `everstep checkpoint convert --trust`, and nothing else, unpickles
        assert set(offences(path.read_text())) <= ALLOWED.get(path.name, set())


def test_the_check_itself_sees_them() -> None:
    assert offences("import pickle") == ["pickle"]
    assert offences("from torch import load") == ["torch.load"]
    assert offences("x = torch.load(p)") == ["torch.load"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_torch_and_starts_no_thread() -> None:
    code = "import sys, os, everstep.checkpoint; print('torch' in sys.modules, len(os.listdir('/proc/self/task')))"
    assert python(code).split() == ["False", "1"]


def test_plain_state_is_saved_and_restored_without_the_slow_import(tmp_path: Path) -> None:
    """torch.distributed.checkpoint takes seconds to import, and a recovery has none to spare."""
    code = f"""
import sys, torch
from everstep.checkpoint import Checkpointer
from everstep.checkpoint.storage import open_storage
for step in (1, 2):
    checkpointer = Checkpointer(open_storage("file://{tmp_path}/c"))
    print(checkpointer.open())
    checkpointer.save(0, step, {{"a": torch.ones(2)}}, None, wait=True)
    checkpointer.close()
print("torch.distributed.checkpoint" in sys.modules, "obstore" in sys.modules, "fsspec" in sys.modules)
"""
    lines = python(code).splitlines()
    assert lines[0] == "None"
    assert "Restored(name='000001-000-0000000001'" in lines[1]
    assert lines[-1].split() == ["False", "False", "False"]
