"""A table of a module's layers: `print(ModelSummary(module, max_depth=-1))`."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from everstep.errors import ConfigurationError
from everstep.strategies.base import moved

NOT_APPLICABLE = "n/a"


@dataclass
class LayerSummary:
    """One row. Sizes are shapes: a list, or a list of such if there are several; "?" if nothing has passed it."""

    name: str
    type: str
    num_parameters: int
    training: bool
    in_size: Any = "?"
    out_size: Any = "?"

    @property
    def mode(self) -> str:
        return "train" if self.training else "eval"


class ModelSummary:
    """
    Args:
        max_depth: of nested modules: 1: the module's own children; -1: all; 0: totals only. With an
            `example_input_array` in the module, forward is run once, without gradients, to find input and output sizes.
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        if not isinstance(max_depth, int) or max_depth < -1:
            raise ConfigurationError(f"ModelSummary(max_depth={max_depth!r}): give -1 for all layers, 0, 1, 2 …")
        self._model = model
        self._max_depth = max_depth

    @cached_property
    def layers(self) -> list[LayerSummary]:
        chosen = [(name, part) for name, part in self._model.named_modules() if name and self._shown(name)]
        rows = [LayerSummary(name, type(part).__name__, _count(part), part.training) for name, part in chosen]
        if self.has_sizes:
            self._run(dict(zip([part for _, part in chosen], rows, strict=True)))
        return rows

    @property
    def has_sizes(self) -> bool:
        return getattr(self._model, "example_input_array", None) is not None

    def _shown(self, name: str) -> bool:
        return self._max_depth == -1 or name.count(".") < self._max_depth

    def _run(self, rows: Mapping[nn.Module, LayerSummary]) -> None:
        """One forward of the example input; each layer's hook notes what passes it."""

        def note(row: LayerSummary, module: nn.Module, inputs: Any, output: Any) -> None:
            row.in_size, row.out_size = _size(inputs[0] if len(inputs) == 1 else inputs), _size(output)

        model = self._model
        hooks = [
            part.register_forward_hook(partial(note, row))
            for part, row in rows.items()
            if not isinstance(part, torch.jit.ScriptModule)
        ]
        modes = [(part, part.training) for part in model.modules()]
        trainer = getattr(model, "_trainer", None)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        example = moved(model.example_input_array, device)
        precision = trainer.precision_plugin if trainer is not None else None
        try:
            model.eval()
            with torch.no_grad(), precision.forward_context() if precision is not None else nullcontext():
                example = precision.convert_input(example) if precision is not None else example
                if isinstance(example, Mapping):
                    model(**example)
                elif isinstance(example, tuple):
                    model(*example)
                else:
                    model(example)
        finally:
            for hook in hooks:
                hook.remove()
            for part, training in modes:
                part.training = training

    @property
    def layer_names(self) -> list[str]:
        return [row.name for row in self.layers]

    @property
    def layer_types(self) -> list[str]:
        return [row.type for row in self.layers]

    @property
    def param_nums(self) -> list[int]:
        return [row.num_parameters for row in self.layers]

    @property
    def training_modes(self) -> list[bool]:
        return [row.training for row in self.layers]

    @property
    def in_sizes(self) -> list[Any]:
        return [row.in_size for row in self.layers]

    @property
    def out_sizes(self) -> list[Any]:
        return [row.out_size for row in self.layers]

    @property
    def total_parameters(self) -> int:
        return _count(self._model)

    @property
    def trainable_parameters(self) -> int:
        return sum(_numel(p) for p in self._model.parameters() if p.requires_grad)

    @property
    def total_layer_params(self) -> int:
        return sum(self.param_nums)

    @property
    def total_training_modes(self) -> dict[str, int]:
        parts = list(self._model.modules())[1:]
        return {"train": sum(p.training for p in parts), "eval": sum(not p.training for p in parts)}

    @property
    def model_size(self) -> float:
        """Of the parameters, in MB (10⁶ bytes)."""
        return sum(_numel(p) * p.element_size() for p in self._model.parameters()) / 1e6

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows, as text."""
        header = ["", "Name", "Type", "Params", "Mode"] + ["In sizes", "Out sizes"] * self.has_sizes
        rows = [
            [str(number), row.name, row.type, human(row.num_parameters), row.mode]
            + [str(row.in_size), str(row.out_size)] * self.has_sizes
            for number, row in enumerate(self.layers)
        ]
        return header, rows

    def totals(self) -> list[tuple[str, str]]:
        total, trainable, modes = self.total_parameters, self.trainable_parameters, self.total_training_modes
        return [
            (human(trainable), "Trainable params"),
            (human(total - trainable), "Non-trainable params"),
            (human(total), "Total params"),
            (f"{self.model_size:,.3f}", "Total estimated model params size (MB)"),
            (str(modes["train"]), "Modules in train mode"),
            (str(modes["eval"]), "Modules in eval mode"),
        ]

    def __str__(self) -> str:
        header, rows = self.table()
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
                 for row in [header, *rows]]  # fmt: skip
        rule = "-" * max(map(len, lines))
        total = [f"{value:<10}{what}" for value, what in self.totals()]
        return "\n".join([*([lines[0], rule, *lines[1:], rule] if rows else []), *total])

    __repr__ = __str__


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    return ModelSummary(lightning_module, max_depth)


def human(count: int) -> str:
    """Three digits and K, M, B or T."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            value = count / unit
            return f"{value:,.0f} {name}" if value >= 100 else f"{value:.1f} {name}"
    return str(count)


def _numel(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


def _count(module: nn.Module) -> int:
    return sum(map(_numel, module.parameters()))


def _size(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return {key: _size(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_size(item) for item in value]
    return NOT_APPLICABLE
