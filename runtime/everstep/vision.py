"""torchvision beside a CPU build of torch.

torchvision's wheel on PyPI is linked to CUDA: beside a CPU build of torch its library does not load, so the operators
that its Python code refers to are missing, and `import torchvision` ends with "operator torchvision::nms does not
exist"; torchmetrics, which imports it, ends likewise. Their schemas are enough for everything that does not call them:
data sets, transforms, classification models. `import everstep` installs a finder that costs nothing until torchvision
is imported, and then declares the schemas if, and only if, the import has failed for want of them.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NAME = "torchvision"
_kept: list[Any] = []  # torch takes declarations back when the object that made them is gone


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Retrying(spec.loader)
        return spec


class _Retrying(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        except RuntimeError as error:
            if f"operator {_NAME}::" not in str(error):
                raise
            declare()
            for name in [name for name in sys.modules if name.startswith(f"{_NAME}.")]:
                del sys.modules[name]
            self._loader.exec_module(module)


def declare() -> None:
    """Declare the schemas of torchvision's compiled operators that its Python code refers to when it is imported."""
    from torch.library import Library

    library = Library(_NAME, "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept.append(library)


def watch() -> None:
    """Be there when torchvision is imported."""
    if _NAME not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
