"""Fully sharded (FSDP2): each rank keeps a part of each parameter, gradient and optimizer state.

A layer's parameters are brought together when its forward or backward needs them. `fully_shard` works on the layers
themselves; the parameters that are in none of them belong to the root, which is entered with each step.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from everstep.environment import Environment
from everstep.errors import ConfigurationError
from everstep.strategies.activation_checkpointing import Policy, apply_activation_checkpointing, chosen
from everstep.strategies.materialise import is_sharded, materialise, shard_like
from everstep.strategies.parallel import ParallelStrategy, Redirect
from everstep.strategies.sync_batchnorm import synchronise_batchnorm

Sharding = Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD"]
_ROOT = "_everstep_root"  # attribute of a sharded module: what enters its root


class FSDPStrategy(ParallelStrategy):
    """Args:
    sharding_strategy: FULL_SHARD; SHARD_GRAD_OP keeps parameters together between forward and backward (more
        memory, less traffic); HYBRID_SHARD shards in groups of ranks and replicates over the groups.
    device_mesh: of HYBRID_SHARD, (replicas, shards); default: a group is a node.
    auto_wrap_policy: which layers are gathered on their own: classes, a function that says it of a layer, or one of
        torch.distributed.fsdp.wrap's; default: the elements of each ModuleList, which is where repeated blocks are.
    cpu_offload: parameters, gradients and optimizer states stay in the host's memory between uses.
    activation_checkpointing_policy: which layers compute their forward again instead of keeping activations.
    mixed_precision: torch's MixedPrecisionPolicy; default: what the Trainer's precision means.
    more: as in ParallelStrategy.
    """

    name = "fsdp"
    shares_each_backward = True
    inference_mode = False  # what is gathered under it could not be used by the next training step

    def __init__(
        self,
        sharding_strategy: Sharding = "FULL_SHARD",
        device_mesh: tuple[int, int] | None = None,
        auto_wrap_policy: Policy | None = None,
        cpu_offload: bool = False,
        activation_checkpointing_policy: Policy | None = None,
        mixed_precision: Any = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if sharding_strategy not in ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD"):
            raise ConfigurationError(
                f"sharding_strategy={sharding_strategy!r}: give FULL_SHARD, SHARD_GRAD_OP or HYBRID_SHARD (to shard "
                'nothing, strategy="ddp")'
            )
        self.sharding_strategy = sharding_strategy
        self.mesh_shape = device_mesh
        self.auto_wrap_policy = auto_wrap_policy
        self.cpu_offload = cpu_offload
        self.activation_checkpointing_policy = activation_checkpointing_policy
        self.mixed_precision = mixed_precision
        self.device_mesh: Any = None
        self._roots: list[Any] = []  # one for each module

    # The mesh of ranks.

    def connect(self, environment: Environment) -> None:
        super().connect(environment)
        if self.device_mesh is None and environment.world_size > 1:
            from torch.distributed.device_mesh import init_device_mesh

            shape, names = self._mesh(environment)
            self.device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    def _mesh(self, environment: Environment) -> tuple[tuple[int, ...], tuple[str, ...]]:
        world = environment.world_size
        if self.sharding_strategy != "HYBRID_SHARD":
            return (world,), ("shard",)
        replicas, shards = self.mesh_shape or (environment.num_nodes, world // environment.num_nodes)
        if replicas * shards != world:
            raise ConfigurationError(
                f"HYBRID_SHARD with device_mesh=({replicas}, {shards}) needs {replicas * shards} ranks, there are "
                f"{world}: give device_mesh=(replicas, shards) whose product is {world}"
            )
        return (replicas, shards), ("replicate", "shard")

    # The model.

    def setup(self, module: nn.Module, move_to_device: bool = True) -> None:
        if _ROOT in vars(module):
            return
        if self.world_size == 1:
            super().setup(module, move_to_device)
            if self.activation_checkpointing_policy is not None:
                apply_activation_checkpointing(module, self.activation_checkpointing_policy)
            return
        self._broadcast_parameters(module)
        if self.activation_checkpointing_policy is not None:
            apply_activation_checkpointing(module, self.activation_checkpointing_policy)
        if self.sync_batchnorm:
            synchronise_batchnorm(module, self._data_group)
        root = Redirect(module)
        self._shard(module, root)
        self._roots.append(root)
        object.__setattr__(module, _ROOT, root)  # not as a sub-module: the module is a part of it
        materialise(module, torch.device("cpu") if self.cpu_offload else self.root_device)

    def _shard(self, module: nn.Module, root: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        options = self._options()
        if not any(isinstance(layer, FSDPModule) for layer in module.modules()):  # configure_model has not done it
            for layer in self._units(module):
                fully_shard(layer, reshard_after_forward=self.sharding_strategy != "SHARD_GRAD_OP", **options)
        # Not the inputs of a step: targets keep their precision. Those of the layers are cast.
        policy = options["mp_policy"]
        options["mp_policy"] = type(policy)(policy.param_dtype, policy.reduce_dtype, policy.output_dtype, False)
        fully_shard(root, **options)

    def _units(self, module: nn.Module) -> list[nn.Module]:
        if self.auto_wrap_policy is not None:
            return chosen(module, self.auto_wrap_policy)
        lists = [layer for layer in module.modules() if isinstance(layer, nn.ModuleList)]
        return [block for blocks in reversed(lists) for block in blocks]

    def _options(self) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        options: dict[str, Any] = {"mesh": self._shard_mesh()}
        # Gradients are summed in float32, in which the sharded parameters are as well.
        compute = self.precision.compute_dtype
        options["mp_policy"] = self.mixed_precision or (
            MixedPrecisionPolicy() if compute is None else MixedPrecisionPolicy(compute, torch.float32)
        )
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
        return options

    def _shard_mesh(self) -> Any:
        return self.device_mesh

    def _broadcast_parameters(self, module: nn.Module) -> None:
        """Everybody's shards are of rank 0's weights, whatever the others have drawn."""
        for tensor in (*module.parameters(), *module.buffers()):
            if not tensor.is_meta and not is_sharded(tensor):
                here = tensor.data.to(self.root_device)
                dist.broadcast(here, src=0)
                if here.device != tensor.device:
                    tensor.data.copy_(here)

    def wrap(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        root = vars(module).get(_ROOT)
        if root is None:
            return step

        def through_root(*args: Any, **kwargs: Any) -> Any:
            return root(step, *args, **kwargs)

        return through_root

    def wrap_evaluation(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        return self.wrap(module, step)

    def synchronise_gradients(self, now: bool, module: nn.Module | None = None) -> None:
        for root in self._roots:
            wanted = module is None or root.module is module
            if wanted and hasattr(root, "set_requires_gradient_sync"):  # not where there is tensor parallelism alone
                root.set_requires_gradient_sync(now)

    def clip_gradients(
        self, optimizer: Optimizer, value: float, algorithm: Literal["norm", "value"] = "norm",
        norm_type: float = 2.0, error_if_nonfinite: bool = False,
    ) -> Tensor | None:  # fmt: skip
        if algorithm == "value":
            return super().clip_gradients(optimizer, value, algorithm)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return clip_norm(gradients, value, norm_type, error_if_nonfinite)

    # State.

    def load_model_state(self, module: nn.Module, state: dict[str, Any], strict: bool = True) -> None:
        own = module.state_dict()
        module.load_state_dict({k: shard_like(v, own[k]) if k in own else v for k, v in state.items()}, strict=strict)

    def load_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        sharded = {
            number: {
                name: shard_like(value, parameters[int(number)])
                if isinstance(value, Tensor) and value.shape == parameters[int(number)].shape
                else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": sharded})

    def gather(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            if not is_sharded(tree):
                return tree
            whole = tree.full_tensor()  # type: ignore[attr-defined]
            # One tensor at a time is whole on the other ranks and on the device: the model may not fit there.
            return whole.detach().cpu() if self.rank == 0 else tree
        if isinstance(tree, dict):
            return {key: self.gather(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self.gather(value) for value in tree)
        return tree


def clip_norm(
    gradients: list[Tensor], value: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale gradients in place so that their common norm is at most `value`. Returns the norm before.

    Shards may be on different meshes (tensor parallel ones on two axes, others on one): a norm for each, then one.
    """
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        key = (gradient.device_mesh, tuple(gradient.placements)) if is_sharded(gradient) else None  # type: ignore[attr-defined]
        groups.setdefault(key, []).append(gradient)
    norms = []
    for group in groups.values():
        norm = torch.nn.utils.get_total_norm(group, norm_type)
        norms.append(norm.full_tensor() if is_sharded(norm) else norm)  # type: ignore[attr-defined]
    total = torch.linalg.vector_norm(torch.stack(norms), norm_type) if norms else torch.zeros(())
    if error_if_nonfinite and not torch.isfinite(total):
        raise RuntimeError(f"the norm of the gradients is {float(total)}, so they cannot be clipped")
    scale = (value / (total + 1e-6)).clamp(max=1.0)
    for group in groups.values():
        for gradient in group:
            local = gradient.to_local() if is_sharded(gradient) else gradient  # type: ignore[attr-defined]
            local.mul_(scale.to(local.device))
    return total
