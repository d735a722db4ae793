"""Modules for serving: ONNX and TorchScript.

What `torch.jit.optimize_for_inference(traced)` gives can be saved, but torch cannot load the file if there is a
convolution in it (seen with 2.13). Save what `to_torchscript` gives, and call `optimize_for_inference` after loading.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch

from everstep.errors import ConfigurationError
from everstep.strategies.base import moved

if TYPE_CHECKING:
    from everstep.module import LightningModule


def to_onnx(module: "LightningModule", file_path: Any, input_sample: Any, **kwargs: Any) -> Any:
    needed = ["onnx", "onnxscript"] if kwargs.get("dynamo", True) else ["onnx"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"to_onnx needs {' and '.join(missing)}: pip install 'everstep[export]'")
    example = _example(module, input_sample, "to_onnx", "input_sample")
    with _for_inference(module):
        return torch.onnx.export(
            module, example if isinstance(example, tuple) else (example,), _path(file_path), **kwargs
        )


def to_torchscript(
    module: "LightningModule", file_path: Any, method: Literal["script", "trace"], example_inputs: Any, **kwargs: Any
) -> Any:
    if method not in ("script", "trace"):
        raise ConfigurationError(f'to_torchscript(method={method!r}): give "script" or "trace"')
    with _for_inference(module):
        if method == "script":
            scripted: Any = torch.jit.script(module, **kwargs)
        else:
            example = _example(module, example_inputs, "to_torchscript", "example_inputs")
            scripted = torch.jit.trace(module, example, **kwargs)  # type: ignore[no-untyped-call]
    if file_path is not None:
        from everstep.checkpoint import ckpt
        from everstep.checkpoint.storage import Body

        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        ckpt.put(ckpt.as_place(file_path), Body.of(buffer.getvalue()))
    return scripted


def _example(module: "LightningModule", given: Any, method: str, argument: str) -> Any:
    example = module.example_input_array if given is None else given
    if example is None:
        raise ConfigurationError(
            f"{method} has to run the module once: give it {argument}, or set example_input_array in the module"
        )
    return moved(example, module.device)


@contextlib.contextmanager
def _for_inference(module: "LightningModule") -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    trainer = vars(module).pop("_trainer", None)  # exporters walk through all attributes
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if trainer is not None:
            module.trainer = trainer
        for part, training in modes:
            part.training = training


def _path(file_path: Any) -> Any:
    return os.fspath(file_path) if isinstance(file_path, os.PathLike) else file_path
