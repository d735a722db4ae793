"""Every public class, function, method and property of the runtime says what it is."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

PACKAGES = (
    "everstep", "everstep.accelerators", "everstep.callbacks", "everstep.checkpoint", "everstep.loggers",
    "everstep.metrics", "everstep.plugins", "everstep.precision", "everstep.profilers", "everstep.strategies",
    "everstep.utilities",
)  # fmt: skip


def public(package: str) -> Iterator[tuple[str, Any]]:
    """The package's own names, and the members of its classes that Everstep's classes define."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or not value.__module__.startswith("everstep"):
            continue
        yield f"{value.__module__}.{name}", value.__doc__
        for base in inspect.getmro(value) if inspect.isclass(value) else ():
            for member, defined in vars(base).items() if base.__module__.startswith("everstep") else ():
                function = getattr(defined, "fget", None) or getattr(defined, "__func__", defined)
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield f"{base.__module__}.{base.__name__}.{member}", inspect.getdoc(getattr(base, member))


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package: str) -> None:
    found = dict(public(package))
    assert found
    assert [name for name, text in found.items() if not (text or "").strip()] == []
