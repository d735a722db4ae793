"""Hyper-parameters as back ends take them: flat, as numbers, strings and booleans; and as a YAML file."""

import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.code_version import code_version
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.data import LightningDataModule
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


def tell_loggers(trainer: "Trainer", module: "LightningModule", datamodule: "LightningDataModule | None") -> None:
    """A Trainer call begins: hyper-parameters of module and datamodule, the code's version and the model's graph.

    Raises:
        ConfigurationError: both have a hyper-parameter of one name, with different values.
    """
    if not trainer.enable_autolog_hparams or not trainer.logs.loggers:
        return
    params: dict[str, Any] = {}
    for owner in (module, datamodule):
        if owner is None or not owner._log_hyperparams:
            continue
        for name, value in dict(owner.hparams_initial).items():
            if name in params and plain(params[name]) != plain(value):
                raise ConfigurationError(
                    f"module and datamodule both have a hyper-parameter {name!r}, {params[name]!r} and {value!r}: "
                    "rename one, or leave it out of the loggers with save_hyperparameters(ignore=…) or logger=False"
                )
            params[name] = value
    for logger in trainer.logs.loggers:
        if params:
            logger.log_hyperparams(params)
        logger.log_code(code_version())
        logger.log_graph(module)
        if not logger.saves_itself:
            logger.save()


def plain(value: Any) -> Any:
    """Numbers, strings, booleans, None, and lists and dicts of them; anything else as its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # numpy's numbers
        return plain(value.item())
    return str(value)


def flat(params: Any, separator: str = "/") -> dict[str, Any]:
    """Nested mappings as "outer/inner": value; lists as their text."""
    found: dict[str, Any] = {}
    for name, value in plain(params).items():
        if isinstance(value, dict) and value:
            found.update({f"{name}{separator}{inner}": item for inner, item in flat(value, separator).items()})
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def write_yaml(path: Path, params: Any) -> None:
    """`params` as a YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _block(plain(params), "") or "{}\n"
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _block(params: dict[str, Any], indent: str) -> str:
    lines = []
    for name, value in params.items():
        key = name if name.isidentifier() and name.lower() not in _WORDS else json.dumps(name)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:\n{_block(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


#: What YAML 1.1 reads as something else than a string.
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"}


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value)
        if text in ("inf", "-inf", "nan"):
            return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[text]
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else text  # 1e-05 would be a string
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)}: {_scalar(v)}' for k, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
