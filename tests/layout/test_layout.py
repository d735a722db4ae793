"""The tree's shape: the standard library stays itself, and what must be light loads nothing heavy."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STDLIB = Path(sysconfig.get_paths()["stdlib"])
BIN = Path(sys.executable).parent


def python(code: str, cwd: Path = ROOT, safe_path: bool = True) -> str:
    """What a fresh interpreter prints."""
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(Path.home())}
    if safe_path:
        environment["PYTHONSAFEPATH"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def folders() -> list[Path]:
    """Every folder that git knows, as a person may stand in it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({(ROOT / line).parent for line in listed.splitlines()} | {ROOT / "operator"})


def test_operator_has_no_init() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists(), "it would shadow the standard library's operator"


def test_import_operator_is_the_standard_library_from_every_folder() -> None:
    # One interpreter walks the folders: fresh caches each time, the folder first on the path as `python x.py` puts it.
    code = """
import importlib, json, sys
for folder in json.loads(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.read()):
    sys.path[0:0] = [folder]; sys.modules.pop("operator", None); importlib.invalidate_caches()
    print(importlib.import_module("operator").__file__)
    del sys.path[0]
"""
    import json

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([str(f) for f in folders()]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = done.stdout.split()
    assert len(files) == len(folders()) > 10
    assert {Path(f).parent for f in files} == {STDLIB}


@pytest.mark.parametrize("safe_path", [True, False])
@pytest.mark.parametrize("folder", [".", "operator", "runtime", "protocol", "tests"])
def test_import_operator_in_a_fresh_interpreter(folder: str, safe_path: bool) -> None:
    assert Path(python("import operator; print(operator.__file__)", ROOT / folder, safe_path)).parent == STDLIB


def python_tools() -> list[str]:
    """The Python tools that the Makefile calls, by name; ruff is a binary and imports nothing."""
    names = set(re.findall(r"\$\(BIN\)/([a-z-]+)", (ROOT / "Makefile").read_text())) - {"ruff", "python"}
    assert {"mypy", "lint-imports"} <= names
    return sorted(names | {"pytest", "everstep"})


@pytest.mark.parametrize("tool", python_tools())
def test_import_operator_under_every_tool(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, "-v", str(BIN / tool), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    origins = re.findall(
        r"^# (?:code object from|\S+ matches) '?(\S*/operator(?:\.py|/__init__\.py))", done.stderr, re.M
    )
    assert origins, "the interpreter told nothing of `operator`"
    assert {Path(origin).parent for origin in origins} == {STDLIB}


def test_import_operator_in_pytest() -> None:
    import operator

    assert Path(str(operator.__file__)).parent == STDLIB


def test_every_test_folder_is_a_package() -> None:
    missing = [str(f.relative_to(ROOT)) for f in folders() if f.is_relative_to(ROOT / "tests") and any(f.glob("*.py"))
               and not (f / "__init__.py").exists()]  # fmt: skip
    assert not missing, "importlib mode replaces stdlib `operator` when the top one is missing"


@pytest.mark.parametrize("module", ["everstep_protocol", "everstep_operator", "everstep", "everstep.cli"])
def test_c12_importing_a_package_loads_no_torch(module: str) -> None:
    loaded = python(f"import sys, {module}; print([m for m in ('torch', 'numpy', 'kubernetes') if m in sys.modules])")
    assert loaded == "[]"


@pytest.mark.parametrize("module", ["everstep.launch.command", "everstep.launch.agent", "everstep.board"])
def test_the_launcher_loads_no_torch(module: str) -> None:
    assert python(f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from everstep.cli import main
try:
    main(["--help"])
except SystemExit as exit:
    assert exit.code == 0
heavy = {"torch", "numpy", "pydantic", "yaml", "rich", "obstore", "kubernetes", "asyncio"} & set(sys.modules)
print("heavy:", sorted(heavy))
"""
    out = python(code)
    assert out.endswith("heavy: []")
    for command in ("run", "launch"):
        assert re.search(rf"^\s+{command}\s+\S", out, re.M), f"no help line for {command}"


def test_public_names_are_exactly_these() -> None:
    out = python("import everstep as L; print(sorted(L.__all__)); [getattr(L, n) for n in L.__all__]")
    names = ["Callback", "Fabric", "LightningDataModule", "LightningModule", "Trainer"]
    assert out == str([*names, "__version__", "seed_everything"])


def test_an_unknown_name_is_an_attribute_error() -> None:
    import everstep

    with pytest.raises(AttributeError, match="'Trainr'"):
        everstep.Trainr  # noqa: B018


def test_s89_nothing_is_unpickled() -> None:
    """No pickle anywhere in the product, but for `everstep checkpoint convert --trust`, and what a script hands over to
    the ranks that it has started itself, over a pipe; torch.load loads data only."""
    trusted = (ROOT / "runtime/everstep/checkpoint/trusted.py", ROOT / "runtime/everstep/strategies/spawn.py")
    for package in ("protocol", "operator", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            if path in trusted:
                continue
            text = path.read_text().replace("from pickle import UnpicklingError", "")
            assert not re.search(r"^\s*(import|from) (pickle|dill|cloudpickle|shelve|marshal)\b", text, re.M), path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in map(ast.unparse, node.keywords), path
    users = subprocess.run(["git", "grep", "-l", "checkpoint.trusted"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {name for name in users.split() if name.startswith("runtime")} == {"runtime/everstep/checkpoint/command.py"}


def test_constraints_are_exact_versions_of_public_packages() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_help_of_make_lists_the_verbs() -> None:
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for verb in ("demo", "test", "check", "generate", "bench", "clean"):
        assert re.search(rf"make {verb}\s+\w", out), verb


def test_s101_the_version_is_that_of_the_distribution() -> None:
    import everstep

    assert everstep.__version__ == importlib.metadata.version("everstep")


def test_c12_the_trainer_loads_nothing_that_torch_has_not_loaded() -> None:
    """Neither another distribution nor the slow parts of torch that torch itself leaves for later."""
    code = """
import sys
import torch
before = set(sys.modules)
import everstep
everstep.Trainer, everstep.LightningModule, everstep.LightningDataModule, everstep.seed_everything
new = set(sys.modules) - before
roots = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
slow = {"torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torch.distributed.fsdp", "sympy"}
print(sorted(roots | slow & new))
"""
    assert python(code) == "['everstep', 'everstep_protocol']"


def test_c12_callbacks_loggers_and_profilers_load_when_they_are_used() -> None:
    out = python(
        "import sys, everstep; everstep.Trainer; "
        "print(sorted({'cProfile', 'rich', 'psutil', 'torchmetrics', 'everstep.callbacks.finetuning', "
        "'everstep.loggers.mlflow'} & set(sys.modules))); "
        "from everstep import callbacks, loggers, profilers; "
        "[getattr(package, name) for package in (callbacks, loggers, profilers) for name in package.__all__]"
    )
    assert out == "[]"
