"""DeepSpeed's ZeRO: optimizer states (1), gradients (2) and parameters (3) divided over the ranks.

The package is imported when a fit begins: `pip install --no-build-isolation 'everstep[deepspeed]'`. DeepSpeed's own
checkpoints are pickles; here states are brought together into whole tensors and saved as everything else, so that any
number of ranks, and any other strategy, goes on from them. While it is saved every rank holds all of it in its host's
memory: a model for which that is too much needs "fsdp".
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.precision import MixedPrecision, Precision, ScaledPrecision
from everstep.strategies.parallel import ParallelStrategy, Redirect


class DeepSpeedStrategy(ParallelStrategy):
    """Args:
    stage: 1, 2 or 3. offload_optimizer, offload_parameters (stage 3): keep them in the host's memory.
    config: more of DeepSpeed's settings, or the path of a JSON file with such; they win over the other arguments.
    more: as in ParallelStrategy.
    """

    name = "deepspeed"
    inference_mode = False  # what is gathered under it could not be used by the next training step

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if stage not in (1, 2, 3):
            raise ConfigurationError(f'DeepSpeedStrategy(stage={stage!r}): give 1, 2 or 3 (to divide nothing, "ddp")')
        if offload_parameters and stage != 3:
            raise ConfigurationError(f"offload_parameters=True needs stage=3, where they are divided; it is {stage}")
        zero: dict[str, Any] = {"stage": stage}
        if offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        if offload_parameters:
            zero["offload_param"] = {"device": "cpu"}
        given = json.loads(Path(config).read_text()) if isinstance(config, str | os.PathLike) else dict(config or {})
        self.config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # it has to know one; only its reports use it
            "managed_gradient_accumulation": False,  # a step is where the loop takes one
            "gradient_clipping": 0.0,  # it would clip to a norm of 1
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **given,
            "zero_optimization": zero | given.get("zero_optimization", {}),
        }
        self._engine: Any = None
        self._module: nn.Module | None = None  # the one in it

    def connect(self, environment: Environment) -> None:
        # It looks for a device of its own; where there are several kinds, it has to be the Trainer's.
        os.environ.setdefault("DS_ACCELERATOR", self.accelerator.name)
        _package()
        super().connect(environment)
        if not dist.is_initialized():  # a single rank, which it cannot do without
            dist.init_process_group(self.accelerator.backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]

    def setup_optimizers(self, module: nn.Module, optimizers: list[Optimizer]) -> list[Optimizer]:
        known = {id(parameter) for parameter in module.parameters()}
        if len(optimizers) != 1 or not all(id(p) in known for g in optimizers[0].param_groups for p in g["params"]):
            raise ConfigurationError(
                f'strategy="deepspeed" trains with one optimizer, of the module\'s own parameters; there are '
                f'{len(optimizers)}: take strategy="ddp" or "fsdp" for several'
            )
        precision = self._precision()
        groups = [list(group["params"]) for group in optimizers[0].param_groups]
        if self._engine is not None:
            self._engine.destroy()  # of an earlier fit: it hangs on the parameters
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self._engine = _package().initialize(
            model=Redirect(module), optimizer=optimizers[0], config=precision | self.config, dist_init_required=False
        )[0]
        self._module = module
        return [_EngineOptimizer(self._engine, optimizers[0], groups)]

    def _precision(self) -> dict[str, Any]:
        """In DeepSpeed's words."""
        if isinstance(self.precision, ScaledPrecision) or self.precision.name not in (
            Precision.name, MixedPrecision.name, "bf16-true",
        ):  # fmt: skip
            raise ConfigurationError(
                f'precision="{self.precision}" does not go with strategy="deepspeed": give "bf16-mixed", "bf16-true" '
                'or "32-true"'
            )
        return {"bf16": {"enabled": self.precision.name == "bf16-true"}}

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        def through_engine(*args: Any, **kwargs: Any) -> Any:
            return self._engine(step, *args, **kwargs) if module is self._module else step(*args, **kwargs)

        return through_engine

    def wrap_evaluation(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        return self.wrap(module, step)

    def clip_gradients(
        self, optimizer: Optimizer, value: float, algorithm: Literal["norm", "value"] = "norm",
        norm_type: float = 2.0, error_if_nonfinite: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if algorithm == "value" or norm_type != 2.0:
            raise ConfigurationError(
                'gradient_clip_algorithm="value" does not go with strategy="deepspeed", which clips divided gradients '
                'by their common 2-norm: give "norm"'
            )
        self._engine.optimizer.clip_grad = value  # it clips as it steps, and knows the norm then
        return None

    def model_state(self, module: nn.Module) -> dict[str, Any]:
        return {name: _whole(value) for name, value in module.state_dict(keep_vars=True).items()}

    def load_model_state(self, module: nn.Module, state: dict[str, Any], strict: bool = True) -> None:
        with _package().zero.GatheredParameters(list(module.parameters()), modifier_rank=0):
            module.load_state_dict(state, strict=strict)
        if module is self._module:  # what it steps is a copy
            for parameter in module.parameters():
                if parameter.requires_grad:
                    _set(parameter, _whole(parameter))

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)


class _EngineOptimizer(Optimizer):
    """What the loop steps. Its state is that of the optimizer inside, in whole tensors of the module's parameters."""

    def __init__(self, engine: Any, inside: Optimizer, groups: list[list[nn.Parameter]]) -> None:
        self.engine, self.inside, self.groups = engine, inside, groups
        self.defaults = inside.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Of the optimizer inside: learning rates and such; the parameters are DeepSpeed's flat ones."""
        return self.inside.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The engine does, when it has stepped."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None if closure is None else closure()
        self.engine.step()
        return result

    def state_dict(self) -> dict[str, Any]:
        names: dict[str, Any] = next((dict(values) for values in self.inside.state.values() if values), {})
        state: dict[int, dict[str, Any]] = {}
        groups, number = [], 0
        for group, parameters in zip(self.inside.param_groups, self.groups, strict=True):
            indices = list(range(number, number + len(parameters)))
            number += len(parameters)
            groups.append({**{name: value for name, value in group.items() if name != "params"}, "params": indices})
            for index, parameter in zip(indices, parameters, strict=True):
                # Each with a step counter of its own: torch's optimizers count in place.
                values = {name: _get(parameter, name) if _is_flat(v) else _copy(v) for name, v in names.items()}
                if parameter.dtype is not torch.float32:
                    values["master"] = _get(parameter)
                state[index] = values
        return {"state": state if names else {}, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, saved in zip(self.inside.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        parameters = [parameter for group in self.groups for parameter in group]
        saved_of = {int(index): values for index, values in state_dict["state"].items()}
        if not saved_of:
            return
        example = next(iter(saved_of.values()))
        names = [name for name, value in example.items() if _is_flat(value) and name != "master"]
        zero = self.engine.optimizer
        flat = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
        for partition in flat:
            plain = {name: _copy(value) for name, value in example.items() if not _is_flat(value)}
            self.inside.state[partition] = plain | {name: torch.zeros_like(partition) for name in names}
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
        for index, values in saved_of.items():
            for name in names:
                _set(parameters[index], values[name], name)
            if "master" in values:
                _set(parameters[index], values["master"])


def _is_flat(value: Any) -> bool:
    """One value for each of a parameter, not one for all."""
    return isinstance(value, Tensor) and value.dim() > 0


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _whole(value: Any) -> Any:
    """A parameter, brought together where it is divided; a collective then."""
    if not hasattr(value, "ds_id"):
        return value.detach() if isinstance(value, Tensor) else value
    with _package().zero.GatheredParameters([value]):
        return value.detach().cpu().clone()


def _get(parameter: nn.Parameter, name: str | None = None) -> Tensor:
    """The whole of what the optimizer keeps for it (None: its float32 value). A collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = safe_get_full_fp32_param(parameter) if name is None else safe_get_full_optimizer_state(parameter, name)
    whole: Tensor = found.detach().view(getattr(parameter, "ds_shape", parameter.shape)).cpu()
    return whole


def _set(parameter: nn.Parameter, whole: Tensor, name: str | None = None) -> None:
    """This rank's part of it, from the whole."""
    from deepspeed import utils

    value = whole.to(dtype=torch.float32).flatten()
    if hasattr(parameter, "ds_id"):
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        value = nn.functional.pad(value, (0, size * dist.get_world_size() - value.numel()))
        value = value[size * dist.get_rank() : size * (dist.get_rank() + 1)]
        keys = (value,) if name is None else (value, name)
        (utils.safe_set_local_fp32_param if name is None else utils.safe_set_local_optimizer_state)(parameter, *keys)
    elif name is None:
        utils.safe_set_full_fp32_param(parameter, value)
    else:
        utils.safe_set_full_optimizer_state(parameter, value, name)


def _package() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigurationError(
            f'strategy="deepspeed" needs the package deepspeed ({error}): pip install --no-build-isolation '
            '"everstep[deepspeed]", or take "fsdp", which divides the same'
        ) from None
    return deepspeed
