"""spec.accelerator: what the ranks compute on, and where such machines are."""

import math
from typing import Literal

from pydantic import Field

from everstep_operator.api.model import Labels, Model, Name, Text, Whole
from everstep_operator.api.rules import Rule

CUDA_RESOURCE = "nvidia.com/gpu"
TPU_RESOURCE = "google.com/tpu"


def chips(tpu: str) -> str:
    """CEL of the chips of a slice: the product of the numbers in 4x4 or 2x2x4. `tpu`: where the object is."""
    factors = f"{tpu}.topology.split('x')"
    return f"(int({factors}[0]) * int({factors}[1]) * ({factors}.size() == 3 ? int({factors}[2]) : 1))"


class Toleration(Model):
    key: Text | None = Field(default=None, description="Taint that is tolerated; none with Exists: all taints.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How value is compared.")
    value: Text | None = Field(default=None, description="Value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; none: all effects."
    )
    toleration_seconds: Whole | None = Field(
        default=None, ge=0, le=10**9, description="For NoExecute: how long. None: for ever."
    )

    RULES = (
        Rule(
            lambda t: t.operator == "Exists" or t.key is not None,
            "self.operator == 'Exists' || has(self.key)",
            "accelerator.tolerations: Equal needs a key; give one, or write operator: Exists for all taints",
        ),
    )


class Rdma(Model):
    resource_name: Name = Field(
        description="Extended resource of the RDMA device plugin, such as rdma/hca_shared_devices_a."
    )
    count: Whole = Field(default=1, ge=1, le=64, description="Devices of each pod.")


class Tpu(Model):
    accelerator: Name = Field(
        description="Value of the node label cloud.google.com/gke-tpu-accelerator, such as tpu-v6e-slice."
    )
    topology: str = Field(
        max_length=16,
        pattern="^[1-9][0-9]?x[1-9][0-9]?(x[1-9][0-9]?)?$",
        description="Chips of one slice, such as 4x4 or 2x2x4; the node label cloud.google.com/gke-tpu-topology.",
    )
    chips_per_host: Whole = Field(
        default=4,
        ge=1,
        le=8,
        description="Chips of one machine: 4 on slices of several hosts; a smaller topology has a host of its size.",
    )

    RULES = (
        Rule(
            lambda t: t.chips < t.chips_per_host or t.chips % t.chips_per_host == 0,
            f"{chips('self')} < self.chipsPerHost || {chips('self')} % self.chipsPerHost == 0",
            "accelerator.tpu.topology {topology} does not divide into hosts of {chipsPerHost} chips: "
            "change topology or chipsPerHost",
        ),
    )

    @property
    def chips(self) -> int:
        """Of one slice."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """Machines, and so pods, of one slice."""
        return max(1, self.chips // self.chips_per_host)

    @property
    def chips_here(self) -> int:
        """Of one pod."""
        return min(self.chips, self.chips_per_host)


class Accelerator(Model):
    type: Literal["cpu", "cuda", "tpu"] = Field(default="cpu", description="What the ranks compute on.")
    count: Whole | None = Field(default=None, ge=1, le=64, description="For cuda: devices of each pod. Default: 1.")
    resource_name: Name | None = Field(
        default=None,
        description="For cuda: the extended resource, such as nvidia.com/mig-1g.10gb. Default: nvidia.com/gpu.",
    )
    node_selector: Labels = Field(default={}, max_length=64, description="Labels of the nodes that workers may run on.")
    tolerations: tuple[Toleration, ...] = Field(
        default=(),
        max_length=64,
        description="Taints of those nodes that workers tolerate, beside the one of the accelerator itself.",
    )
    rdma: Rdma | None = Field(default=None, description="For cuda: network devices for NCCL over InfiniBand or RoCE.")
    tpu: Tpu | None = Field(default=None, description="For tpu: which slices, on GKE.")

    RULES = (
        Rule(
            lambda a: a.count is None or a.type == "cuda",
            "!has(self.count) || self.type == 'cuda'",
            "accelerator.count is for type cuda, and type is {type}: remove count or change type "
            "(the chips of a TPU pod follow from tpu.topology)",
        ),
        Rule(
            lambda a: a.resource_name is None or a.type == "cuda",
            "!has(self.resourceName) || self.type == 'cuda'",
            "accelerator.resourceName is for type cuda, and type is {type}: remove resourceName or change type",
        ),
        Rule(
            lambda a: a.rdma is None or a.type == "cuda",
            "!has(self.rdma) || self.type == 'cuda'",
            "accelerator.rdma is for type cuda, and type is {type}: remove rdma or change type",
        ),
        Rule(
            lambda a: a.tpu is None or a.type == "tpu",
            "!has(self.tpu) || self.type == 'tpu'",
            "accelerator.tpu is for type tpu, and type is {type}: remove tpu or change type",
        ),
        Rule(
            lambda a: a.tpu is not None or a.type != "tpu",
            # An API server checks the default {} of this object before it fills in the defaults of the fields.
            "has(self.tpu) || !has(self.type) || self.type != 'tpu'",
            "accelerator.type tpu needs accelerator.tpu: write its accelerator and topology",
        ),
    )

    @property
    def resource(self) -> str | None:
        """The extended resource that its pods ask for."""
        return {"cpu": None, "cuda": self.resource_name or CUDA_RESOURCE, "tpu": TPU_RESOURCE}[self.type]

    @property
    def count_here(self) -> int:
        """Devices of one pod."""
        return self.tpu.chips_here if self.tpu is not None else (self.count or 1) if self.type == "cuda" else 0


_TPU = "self.accelerator.tpu"
#: CEL of spec: numNodes is a multiple of the pods of one TPU slice.
WHOLE_SLICES = (
    f"!has({_TPU}) || {chips(_TPU)} <= {_TPU}.chipsPerHost || "
    f"self.numNodes % ({chips(_TPU)} / {_TPU}.chipsPerHost) == 0"
)
