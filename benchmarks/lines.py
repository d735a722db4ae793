"""How much code it takes: lines without blank ones, comments and docstrings, beside Lightning's for the same work.

    python benchmarks/lines.py

Prints the table of docs/adr/0013-loop.md. Lightning has to be installed; it is only read.
"""

import ast
import tokenize
from importlib.util import find_spec
from pathlib import Path

EVERSTEP = Path(__file__).resolve().parents[1] / "runtime" / "everstep"
_SPEC = find_spec("lightning")
if _SPEC is None or _SPEC.origin is None:
    raise SystemExit("there is nothing to compare with: pip install -c constraints.txt lightning")
LIGHTNING = Path(_SPEC.origin).parent

#: What it is, and the files and folders of it, here and there.
PARTS = {
    "the fit loop and optimisation": (
        "trainer/fit.py trainer/optimization.py trainer/schedulers.py",
        "pytorch/loops/fit_loop.py pytorch/loops/training_epoch_loop.py pytorch/loops/optimization",
    ),
    "all loops, hooks, optimizers, schedulers, loaders, CombinedLoader": (
        "trainer/fit.py trainer/optimization.py trainer/schedulers.py trainer/evaluate.py trainer/due.py "
        "trainer/stopping.py trainer/waiting.py trainer/hooks.py trainer/optimizers.py trainer/loaders.py "
        "trainer/transfer.py sampling/combined.py",
        "pytorch/loops pytorch/core/optimizer.py pytorch/trainer/call.py pytorch/trainer/connectors/data_connector.py "
        "pytorch/utilities/combined_loader.py",
    ),
    "the Trainer, its arguments and its callbacks": (
        "trainer/trainer.py trainer/properties.py trainer/call.py trainer/arguments.py trainer/deterministic.py "
        "trainer/states.py callbacks/defaults.py callbacks/conflicts.py",
        "pytorch/trainer/trainer.py pytorch/trainer/setup.py pytorch/trainer/states.py "
        "pytorch/trainer/configuration_validator.py pytorch/trainer/connectors/callback_connector.py",
    ),
    "`self.log`": ("trainer/logs.py", "pytorch/trainer/connectors/logger_connector"),
    "LightningModule, LightningDataModule, hparams, export": (
        "module.py data.py hparams.py export.py",
        "pytorch/core/module.py pytorch/core/hooks.py pytorch/core/datamodule.py pytorch/core/mixins "
        "pytorch/core/saving.py",
    ),
    "Fabric": ("fabric.py", "fabric/fabric.py fabric/wrappers.py"),
}


def lines(path: Path) -> int:
    """Of code, in a file or in all of a folder."""
    if path.is_dir():
        return sum(lines(file) for file in path.rglob("*.py"))
    code: set[int] = set()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type != tokenize.COMMENT and token.string.strip():
                code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def main() -> None:
    print("| | Everstep | Lightning |\n|---|---|---|")
    for what, sides in PARTS.items():
        counts = [
            sum(lines(root / name) for name in names.split())
            for root, names in zip((EVERSTEP, LIGHTNING), sides, strict=True)
        ]
        print(f"| {what} | {counts[0]} | {counts[1]} |")


if __name__ == "__main__":
    main()
