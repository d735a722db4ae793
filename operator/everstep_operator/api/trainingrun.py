"""TrainingRun, group everstep.dev, version v1alpha1: the one source of truth. The CRD is generated from these models.

A field exists only when something acts on it. Durations are plain numbers of seconds.
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, Field

from everstep_operator.api.accelerator import CUDA_RESOURCE, TPU_RESOURCE, WHOLE_SLICES, Accelerator, chips
from everstep_operator.api.checkpoint import Checkpoint
from everstep_operator.api.elastic import MAX_NODES, ElasticPolicy
from everstep_operator.api.failure_policy import FailurePolicy
from everstep_operator.api.model import Flag, Model, Whole
from everstep_operator.api.pod_template import PodTemplate
from everstep_operator.api.rules import Rule, Transition
from everstep_operator.api.scheduling import Scheduling
from everstep_operator.api.trainer import Trainer
from everstep_protocol.reasons import LAST_LINES

GROUP = "everstep.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingRun"

#: spec.managedBy of the runs that Everstep's operator looks after; so are those that name nobody.
MANAGER = f"{GROUP}/operator"

#: Pod names are <run>-<5 characters of its uid>-coordinator-<attempt> at the longest, and must be DNS labels of 63.
MAX_NAME = 40


class StatusModel(Model):
    """Written by the operator only. An older operator ignores what a newer one has noted here."""

    model_config = ConfigDict(extra="ignore")


# --- spec -----------------------------------------------------------------------------------------------------------


_MANAGER = "^[a-z0-9.-]+/[A-Za-z0-9._/-]+$"


class Spec(Model):
    suspend: Flag = Field(
        default=False,
        description="true: save a checkpoint, stop all pods and wait; false: go on from there.",
    )
    managed_by: str | None = Field(
        default=None,
        max_length=63,
        description="Who looks after the run, as domain/name. Default: Everstep's operator; it leaves the runs of "
        "others alone.",
    )
    num_nodes: Whole = Field(
        default=1,
        ge=1,
        le=MAX_NODES,
        description="Nodes that train together, one pod each. kubectl scale and autoscalers change it, within "
        "elasticPolicy: the run saves at an agreed step and goes on with the new number.",
    )
    elastic_policy: ElasticPolicy | None = Field(
        default=None, description="Bounds for the number of nodes. Default: exactly numNodes."
    )
    num_proc_per_node: Whole = Field(
        default=0,
        ge=0,
        le=1_024,
        description="Ranks per node, one process each. 0: one for each device of the accelerator; on CPUs, one.",
    )
    accelerator: Accelerator = Field(default=Accelerator(), description="What the ranks compute on, and where.")
    trainer: Trainer = Field(description="What to run.")
    pod_template: PodTemplate | None = Field(
        default=None, description="Anything else that a worker pod can say, merged over what the operator renders."
    )
    checkpoint: Checkpoint | None = Field(
        default=None,
        description="Where and how often to save. Without it a restart begins at step 0.",
    )
    failure_policy: FailurePolicy = Field(
        default=FailurePolicy(), description="What to do when ranks, pods or nodes die, or do not come up."
    )
    scheduling: Scheduling = Field(default=Scheduling(), description="How the pods compete with those of others.")
    active_deadline_seconds: Whole | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="The run fails this many seconds after it was started or resumed; it saves a checkpoint first.",
    )
    ttl_seconds_after_finished: Whole | None = Field(
        default=None,
        ge=0,
        le=10**9,
        description="The TrainingRun and its pods are deleted so long after it Succeeded or Failed. Checkpoints stay. "
        "Default: it is kept.",
    )
    clean_pod_policy: Literal["Running", "All", "None"] = Field(
        default="Running",
        description="Pods to delete when the run is over: those that still run, so that the logs of the others can "
        "be read; all; or none.",
    )

    RULES = (
        Rule(
            lambda s: s.elastic_policy is None or s.num_nodes >= s.elastic_policy.min_nodes,
            "!has(self.elasticPolicy) || self.numNodes >= self.elasticPolicy.minNodes",
            "numNodes {numNodes} is below elasticPolicy.minNodes {elasticPolicy.minNodes}: "
            "raise numNodes or lower minNodes",
        ),
        Rule(
            lambda s: s.elastic_policy is None or s.num_nodes <= s.elastic_policy.max_nodes,
            "!has(self.elasticPolicy) || self.numNodes <= self.elasticPolicy.maxNodes",
            "numNodes {numNodes} is above elasticPolicy.maxNodes {elasticPolicy.maxNodes}: "
            "lower numNodes or raise maxNodes",
        ),
        Rule(
            lambda s: (
                s.elastic_policy is None or (s.num_nodes - s.elastic_policy.min_nodes) % s.elastic_policy.step == 0
            ),
            "!has(self.elasticPolicy) || (self.numNodes - self.elasticPolicy.minNodes) % self.elasticPolicy.step == 0",
            "numNodes {numNodes} is not elasticPolicy.minNodes {elasticPolicy.minNodes} plus a multiple of step "
            "{elasticPolicy.step}: change numNodes",
        ),
        Rule(
            lambda s: s.managed_by is None or re.fullmatch(_MANAGER, s.managed_by) is not None,
            f"!has(self.managedBy) || self.managedBy.matches('{_MANAGER}')",
            "managedBy {managedBy} names no manager: write domain/name, or remove it for Everstep's own operator",
        ),
        Rule(
            lambda s: s.accelerator.tpu is None or s.num_nodes % s.accelerator.tpu.hosts == 0,
            WHOLE_SLICES,
            "numNodes {numNodes} are no whole TPU slices of topology {accelerator.tpu.topology} with "
            "{accelerator.tpu.chipsPerHost} chips a host: write a multiple of the hosts of one slice",
        ),
        Rule(
            lambda s: s.accelerator.tpu is None or s.elastic_policy is None,
            "!has(self.accelerator.tpu) || !has(self.elasticPolicy)",
            "elasticPolicy does not go with a TPU, whose hosts cannot leave or join a running world: "
            "remove it, and change numNodes while the run is suspended",
        ),
        Rule(
            lambda s: s.accelerator.tpu is None or s.num_nodes == 1 or s.accelerator.tpu.hosts > 1,
            "!has(self.accelerator.tpu) || self.numNodes == 1 || "
            f"{chips('self.accelerator.tpu')} > self.accelerator.tpu.chipsPerHost",
            "numNodes {numNodes} with TPU slices of one host ({accelerator.tpu.topology}), which cannot be joined: "
            "take a larger topology, or a run for each slice",
        ),
        Rule(
            lambda s: s.accelerator.tpu is None or s.num_proc_per_node in (0, 1, s.accelerator.tpu.chips_here),
            "!has(self.accelerator.tpu) || self.numProcPerNode <= 1 || "
            "self.numProcPerNode == self.accelerator.tpu.chipsPerHost || "
            f"self.numProcPerNode == {chips('self.accelerator.tpu')}",
            "numProcPerNode {numProcPerNode} does not go with the chips of a TPU host: "
            "write 1 (one rank drives all of them), or remove it (a rank for each)",
        ),
        Rule(
            lambda s: not s.trainer.resources.names(s.accelerator.resource),
            "self.accelerator.type == 'cpu' || "
            "[self.accelerator.type == 'tpu' ? 'google.com/tpu' : has(self.accelerator.resourceName) ? "
            "self.accelerator.resourceName : 'nvidia.com/gpu'].all(r, "
            "!(r in self.trainer.resources.requests) && !(r in self.trainer.resources.limits))",
            "trainer.resources names the resource of the accelerator: remove it, accelerator says how many",
        ),
        Rule(
            lambda s: (
                s.accelerator.type != "cpu" or not any(map(s.trainer.resources.names, (CUDA_RESOURCE, TPU_RESOURCE)))
            ),
            f"self.accelerator.type != 'cpu' || ['{CUDA_RESOURCE}', '{TPU_RESOURCE}'].all(r, "
            "!(r in self.trainer.resources.requests) && !(r in self.trainer.resources.limits))",
            "trainer.resources asks for devices, and accelerator.type is cpu, which would not use them: remove them "
            "there, and write accelerator.type: cuda and how many in accelerator.count, or type: tpu",
        ),
    )

    @property
    def managed_by_us(self) -> bool:
        return self.managed_by in (None, MANAGER)

    @property
    def ranks_per_node(self) -> int:
        if self.num_proc_per_node:
            return self.num_proc_per_node
        return self.accelerator.count_here or 1

    @property
    def min_nodes(self) -> int:
        return self.elastic_policy.min_nodes if self.elastic_policy else self.num_nodes

    @property
    def max_nodes(self) -> int:
        return self.elastic_policy.max_nodes if self.elastic_policy else self.num_nodes


# --- status ---------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Where a run is. docs/phases.md draws how it moves."""

    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def over(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


class Condition(StatusModel):
    type: str = Field(
        max_length=316,
        description="Complete, Failed, Suspended, PodsRunning, Moving, ProgressReported, CheckpointsDurable, "
        "CoordinatorFails, CoordinatorSilent or PodsRejected.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(max_length=1_024, description="Why, in one CamelCase word.")
    message: str = Field(default="", max_length=32_768, description="Why, in a sentence.")
    last_transition_time: datetime = Field(description="When status or reason last changed.")
    observed_generation: int | None = Field(default=None, ge=0, description="metadata.generation that this is about.")


class Nodes(StatusModel):
    desired: int = Field(default=0, ge=0, description="Nodes that the run wants.")
    ready: int = Field(default=0, ge=0, description="Nodes whose pod runs.")


class Restarts(StatusModel):
    total: int = Field(default=0, ge=0, description="Restarts after failures, the ones that maxRestarts counts.")
    by_cause: dict[str, int] = Field(
        default_factory=dict, description="The same, by reason.", json_schema_extra={"maxProperties": 64}
    )
    generation: int = Field(default=0, ge=0, description="Last generation whose failure has been counted.")
    attempt: int = Field(default=0, ge=0, description="Last pod attempt that a counted failure had seen.")


class Attempt(StatusModel):
    """One failure. The last few are kept."""

    generation: int = Field(default=0, ge=0, description="The group of workers that failed, from 1; 0: none yet.")
    reason: str = Field(max_length=256, description="OutOfMemory, UserException, Killed, NodeLost, …")
    message: str = Field(default="", max_length=2_048, description="What happened, in one line.")
    node: int | None = Field(default=None, ge=0, description="Index of the node, where known.")
    rank: int | None = Field(default=None, ge=0, description="Global rank, where known.")
    exit_code: int | None = Field(default=None, description="Exit status of the process, where known.")
    signal: int | None = Field(default=None, description="The signal that ended it, if one did.")
    step: int = Field(default=0, ge=0, description="Last optimizer step that it had entered.")
    time: datetime = Field(description="When the operator learnt of it.")
    node_name: str = Field(default="", max_length=253, description="The Kubernetes Node it happened on, where known.")
    last_lines: tuple[str, ...] = Field(
        default=(), max_length=LAST_LINES, description="What the rank printed last, where known."
    )


class ProgressStatus(StatusModel):
    step: int = Field(default=0, ge=0, description="Optimizer steps finished.")
    max_steps: int | None = Field(default=None, ge=0, description="Optimizer steps in all, where known.")
    percent: int | None = Field(default=None, ge=0, le=100, description="step of maxSteps.")
    epoch: int = Field(default=0, ge=0, description="Epoch, from 0.")
    loss: float | None = Field(default=None, description="Latest training loss.")
    samples_per_second: float | None = Field(default=None, ge=0, description="Of all ranks together.")
    eta: datetime | None = Field(default=None, description="When maxSteps will be reached at the pace of now.")
    updated_at: datetime | None = Field(default=None, description="When these numbers last changed.")


class LastCheckpoint(StatusModel):
    step: int = Field(ge=0, description="Optimizer step that it holds.")
    uri: str = Field(max_length=4_096, description="Where it lies.")
    time: datetime = Field(description="When it was committed.")
    world_size: int = Field(ge=0, description="Ranks that wrote it.")
    verified: bool = Field(description="Sizes and checksums were compared after the write.")


class ResumedFrom(StatusModel):
    step: int = Field(ge=0, description="Optimizer step that training went on from.")
    uri: str = Field(max_length=4_096, description="The checkpoint.")
    note: str = Field(default="", max_length=2_048, description="Why not a newer one, if one was refused.")


class GoodputStatus(StatusModel):
    """The parts add up to the time of the run, that of its suspensions left out."""

    ratio: float = Field(
        default=0.0, ge=0, le=1, description="Productive share of the time since the first start, not suspended."
    )
    productive_seconds: float = Field(default=0.0, ge=0, description="Seconds in steps that were not lost again.")
    waiting_seconds: float = Field(default=0.0, ge=0, description="Seconds of waiting for nodes, not after a failure.")
    startup_seconds: float = Field(
        default=0.0, ge=0, description="Seconds of processes, imports, rendezvous and restore until the first step."
    )
    lost_seconds: dict[str, float] = Field(
        default_factory=dict,
        description="Seconds from a failure until its step was reached again, by reason.",
        json_schema_extra={"maxProperties": 64},
    )


class ExcludedNode(StatusModel):
    name: str = Field(max_length=253, description="Name of the Kubernetes Node.")
    reason: str = Field(default="", max_length=1_024, description="What happened there.")
    until: datetime = Field(description="From then on pods of this run may be placed on it again.")


class Refusal(StatusModel):
    """The cluster does not let a pod be created."""

    message: str = Field(max_length=4_096, description="In the cluster's words.")
    count: int = Field(ge=1, description="Refusals in a row; the wait before the next attempt grows with them.")
    time: datetime = Field(description="When the last attempt was refused.")


class Status(StatusModel):
    phase: Phase | None = Field(
        default=None, description="Pending, Starting, Running, Restarting, Suspended, Succeeded or Failed."
    )
    reason: str = Field(default="", max_length=256, description="Why this phase, in one CamelCase word.")
    message: str = Field(default="", max_length=8_192, description="Why this phase, in a sentence.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description="Complete, Failed, Suspended, PodsRunning, Moving, …; for kubectl wait.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int | None = Field(default=None, ge=0, description="metadata.generation that this is about.")
    start_time: datetime | None = Field(default=None, description="When the run was started, or last resumed.")
    completion_time: datetime | None = Field(default=None, description="When it Succeeded or Failed.")
    selector: str = Field(default="", max_length=512, description="Label selector of the worker pods.")
    nodes: Nodes = Field(default=Nodes(), description="Nodes wanted and there.")
    world_size: int = Field(default=0, ge=0, description="Ranks that train together now.")
    attempt: int = Field(
        default=1, ge=1, description="Number in the names of pods created now; grows with each replacement."
    )
    generation: int = Field(
        default=0, ge=0, description="Number of the group of workers that trains; a restart makes a new one."
    )
    restarts: Restarts = Field(default=Restarts(), description="Restarts after failures.")
    attempts: tuple[Attempt, ...] = Field(default=(), max_length=10, description="The last few failures, oldest first.")
    progress: ProgressStatus | None = Field(default=None, description="Where training is.")
    last_checkpoint: LastCheckpoint | None = Field(default=None, description="The newest committed checkpoint.")
    resumed_from: ResumedFrom | None = Field(default=None, description="The checkpoint of the last resume.")
    not_durable_since: datetime | None = Field(
        default=None,
        description="Saving has failed since then: a failure loses all work since lastCheckpoint.",
    )
    goodput: GoodputStatus | None = Field(default=None, description="Where the time went.")
    excluded_nodes: tuple[ExcludedNode, ...] = Field(
        default=(), max_length=100, description="Nodes that were lost, and are avoided for a while."
    )
    refusal: Refusal | None = Field(
        default=None, description="Why the missing pods cannot be created (quota, admission)."
    )

    def condition(self, type: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == type), None)


# --- the object -----------------------------------------------------------------------------------------------------


class Metadata(Model):
    """Of Kubernetes' ObjectMeta what Everstep reads. The rest of it is legal and passes by."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="Name of the run.")
    namespace: str = Field(default="default", description="Namespace of the run.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")
    uid: str = Field(default="", description="Made by the cluster: this very object, not another one of the same name.")
    resource_version: str = Field(default="", description="Made by the cluster: this very version of the object.")
    generation: int = Field(default=0, description="Made by the cluster: counts changes of spec.")
    creation_timestamp: datetime | None = Field(default=None, description="Made by the cluster.")


# --- what may change, and when: at the root, where status can be seen; in CEL the run as it was is oldSelf -----------

_OVER = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in ['Succeeded', 'Failed']"
#: Of a run that is over, what still acts; managedBy has a rule of its own.
_ACTIVE_AFTER_THE_END = {"ttl_seconds_after_finished", "clean_pod_policy", "managed_by"}
_IDLE_AFTER_THE_END = [field for field in Spec.model_fields if field not in _ACTIVE_AFTER_THE_END]


def _over(run: "TrainingRun") -> bool:
    return run.status.phase is not None and run.status.phase.over


def _same(field: str) -> str:
    info = Spec.model_fields[field]
    new, old = f"self.spec.{info.alias}", f"oldSelf.spec.{info.alias}"
    if info.is_required() or info.default is not None:
        return f"{new} == {old}"
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"


def _fixed(field: str) -> Transition:
    """A field that says what pods are: it changes while there are none."""
    return Transition(
        lambda old, new: _over(old) or old.spec.suspend or getattr(old.spec, field) == getattr(new.spec, field),
        f"({_OVER}) || oldSelf.spec.suspend || ({_same(field)})",
        f"{Spec.model_fields[field].alias} changes only while the run is suspended: "
        "set suspend to true first, then change it",
    )


_ENDED = Transition(
    lambda old, new: not _over(old) or all(getattr(old.spec, f) == getattr(new.spec, f) for f in _IDLE_AFTER_THE_END),
    f"!({_OVER}) || ({' && '.join(f'({_same(field)})' for field in _IDLE_AFTER_THE_END)})",
    "the run is over and does not begin again: delete it and create it anew (kubectl replace --force -f does both), "
    "and it goes on from the last checkpoint in its checkpoint.uri",
)
_RESIZED = Transition(
    lambda old, new: (
        _over(old)
        or old.spec.suspend
        or old.spec.num_nodes == new.spec.num_nodes
        or new.spec.elastic_policy is not None
    ),
    f"({_OVER}) || oldSelf.spec.suspend || {_same('num_nodes')} || has(self.spec.elasticPolicy)",
    "numNodes of a running run changes only within its elasticPolicy: set suspend to true first, "
    "and then change numNodes, or give it an elasticPolicy with minNodes and maxNodes",
)
_SAME_MANAGER = Transition(
    lambda old, new: old.spec.managed_by == new.spec.managed_by,
    _same("managed_by"),
    "managedBy never changes, or two managers could hold the run at once: delete the run and create it anew",
)


_LABEL = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class TrainingRun(Model):
    """A training job over several nodes that survives failures."""

    api_version: Literal["everstep.dev/v1alpha1"] = Field(
        default="everstep.dev/v1alpha1", description="Group and version."
    )
    kind: Literal["TrainingRun"] = Field(default="TrainingRun", description="TrainingRun.")
    metadata: Metadata = Field(description="Name, namespace, labels.")
    spec: Spec = Field(description="What the run should be.")
    status: Status = Field(default=Status(), description="What it is; written by the operator.")

    RULES = (
        Rule(
            lambda r: len(r.metadata.name) <= MAX_NAME,
            f"self.metadata.name.size() <= {MAX_NAME}",
            f"metadata.name {{metadata.name}} is longer than {MAX_NAME} characters, "
            "and the names of its pods would not fit: choose a shorter one",
        ),
        Rule(
            lambda r: re.fullmatch(_LABEL, r.metadata.name) is not None,
            f"self.metadata.name.matches('{_LABEL}')",
            "metadata.name {metadata.name} has characters that a pod's name may not have: "
            "use a-z, 0-9 and -, with a letter or digit at both ends",
        ),
    )
    TRANSITIONS = (
        _SAME_MANAGER,
        _ENDED,
        _RESIZED,
        _fixed("elastic_policy"),
        _fixed("num_proc_per_node"),
        _fixed("accelerator"),
        _fixed("trainer"),
        _fixed("pod_template"),
        _fixed("checkpoint"),
        _fixed("scheduling"),
    )

    def to_object(self) -> dict[str, Any]:
        """The JSON object, without fields that are not set."""
        return self.model_dump(mode="json", exclude_none=True)


def refused_changes(old: TrainingRun, new: TrainingRun) -> list[str]:
    """Sentences about changes of spec that the run as it was does not allow; empty if all of them are fine."""
    return [rule.message for rule in new.TRANSITIONS if not rule.holds(old, new)]
