"""spec.trainer: what each rank runs, and the container that it runs in."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from everstep_operator.api.code import Code
from everstep_operator.api.model import Flag, Model, Name, Quantity, Text, Whole, each_once
from everstep_operator.api.rules import Rule
from everstep_protocol import env as protocol_env

#: Set by everstep itself in every pod, so nobody else may.
OWN_VARIABLES = tuple(sorted(v for k, v in vars(protocol_env).items() if k.isupper() and isinstance(v, str)))


class KeyRef(Model):
    name: Name = Field(description="Name of the object, in the run's namespace.")
    key: Name = Field(description="Key in it.")
    optional: Flag = Field(default=False, description="true: go on without it if it is not there.")


class FieldRef(Model):
    field_path: Text = Field(description="Field of the pod, such as spec.nodeName or metadata.labels['team'].")


class EnvVarSource(Model):
    secret_key_ref: KeyRef | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeyRef | None = Field(default=None, description="A key of a ConfigMap.")
    field_ref: FieldRef | None = Field(default=None, description="A field of the pod itself.")

    RULES = (
        Rule(
            lambda s: [s.secret_key_ref, s.config_map_key_ref, s.field_ref].count(None) == 2,
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(given, given)",
            "trainer.env: valueFrom takes one source: secretKeyRef, configMapKeyRef or fieldRef",
        ),
    )


class EnvVar(Model):
    name: str = Field(
        min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", description="Name of the variable."
    )
    value: str = Field(default="", max_length=32_768, description="Its value.")
    value_from: EnvVarSource | None = Field(default=None, description="Where its value comes from, on a cluster.")

    RULES = (
        Rule(
            lambda e: e.name not in OWN_VARIABLES,
            f"!(self.name in [{', '.join(repr(name) for name in OWN_VARIABLES)}])",
            "trainer.env: {name} is set by Everstep itself: remove it from env",
        ),
        Rule(
            lambda e: e.name not in protocol_env.TORCHRUN,
            f"!(self.name in {list(protocol_env.TORCHRUN)})",
            "trainer.env: {name} is given to each rank when a world is formed: remove it from env; "
            "numNodes and numProcPerNode say how many ranks there are",
        ),
        Rule(
            lambda e: e.value_from is None or e.value == "",
            "!has(self.valueFrom) || !has(self.value) || self.value == ''",
            "trainer.env: {name} has value and valueFrom: keep one",
        ),
    )


class NameRef(Model):
    name: Name = Field(description="Name of the object, in the run's namespace.")


class EnvSource(Model):
    name: Name = Field(description="Name of the object, in the run's namespace.")
    optional: Flag = Field(default=False, description="true: go on without it if it is not there.")


class EnvFrom(Model):
    prefix: str = Field(
        default="", max_length=256, pattern=r"^([_a-zA-Z][-._a-zA-Z0-9]*)?$", description="Put in front of each name."
    )
    secret_ref: EnvSource | None = Field(default=None, description="A Secret; each key becomes a variable.")
    config_map_ref: EnvSource | None = Field(default=None, description="A ConfigMap; each key becomes a variable.")

    RULES = (
        Rule(
            lambda e: (e.secret_ref is None) != (e.config_map_ref is None),
            "has(self.secretRef) != has(self.configMapRef)",
            "trainer.envFrom: each entry takes one source: secretRef or configMapRef",
        ),
    )


class Resources(Model):
    requests: dict[str, Quantity] = Field(
        default={}, max_length=32, description="What the scheduler sets aside for each pod, such as cpu, memory."
    )
    limits: dict[str, Quantity] = Field(
        default={}, max_length=32, description="What each pod may use at most; /dev/shm counts as memory."
    )

    def names(self, resource: str | None) -> bool:
        return resource in self.requests or resource in self.limits


Argument = Annotated[str, StringConstraints(max_length=8_192)]


#: What starts ranks by itself.
_LAUNCHERS = "(.*/)?(torchrun|accelerate|deepspeed|mpirun|mpiexec|horovodrun)"
_LAUNCHER_MODULES = ("torch.distributed.run", "torch.distributed.launch")


class Trainer(Model):
    image: Text | None = Field(
        default=None, description="Container image of the workers. Default: the runtime image of the operator."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled. Default: Always for :latest, else IfNotPresent."
    )
    image_pull_secrets: tuple[NameRef, ...] = Field(
        default=(), max_length=16, description="Secrets for the registry of the image, beside those of the operator."
    )
    inject_everstep: Flag = Field(
        default=False,
        description="true: bring Everstep into an image that lacks it; it has to have Python 3.11 and torch.",
    )
    code: Code | None = Field(default=None, description="Script or folder to bring into the image.")
    command: tuple[Argument, ...] = Field(
        min_length=1,
        max_length=64,
        description="What each rank executes, without a shell; [python, train.py] runs under everstep launch.",
    )
    args: tuple[Argument, ...] = Field(default=(), max_length=512, description="Arguments, appended to the command.")
    env: tuple[EnvVar, ...] = Field(
        default=(),
        max_length=256,
        description="Environment variables of the ranks, beside those of Everstep and torchrun.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    env_from: tuple[EnvFrom, ...] = Field(
        default=(), max_length=32, description="Secrets and ConfigMaps whose keys become environment variables."
    )
    working_dir: str | None = Field(
        default=None,
        min_length=1,
        max_length=4_096,
        description="Folder in which the command starts. Default: that of trainer.code, or the image's.",
    )
    resources: Resources = Field(default=Resources(), description="CPU, memory and others, of each pod.")
    service_account_name: Name | None = Field(
        default=None, description="Service account of the workers, for workload identity. They get no token of it."
    )
    termination_grace_period_seconds: Whole = Field(
        default=30,
        ge=1,
        le=86_400,
        description="Time for a pod that has to leave to save a checkpoint: more than the longest save. Suspend, scale "
        "and deadline wait as long, and up to five minutes more for the evaluation that is under way.",
    )

    RULES = (
        Rule(
            lambda t: t.working_dir is None or t.working_dir.startswith("/") or t.code is not None,
            "!has(self.workingDir) || self.workingDir.startsWith('/') || has(self.code)",
            "trainer.workingDir {workingDir} is relative to trainer.code, and there is none: "
            "write an absolute path, or bring the folder with trainer.code",
        ),
        Rule(
            lambda t: len(t.command) > 1 or " " not in t.command[0],
            "self.command.size() != 1 || !self.command[0].contains(' ')",
            "trainer.command is executed without a shell: write each word by itself, such as [python, train.py]",
        ),
        Rule(
            lambda t: re.fullmatch(_LAUNCHERS, t.command[0]) is None and not set(_LAUNCHER_MODULES) & set(t.command),
            f"!self.command[0].matches('^{_LAUNCHERS}$') && "
            f"!{list(_LAUNCHER_MODULES)}.exists(module, module in self.command)",
            "trainer.command is what each rank runs, and a launcher such as torchrun would start ranks in every rank: "
            "write [python, train.py], and numProcPerNode for its --nproc-per-node",
        ),
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        each_once("trainer.env", (variable.name for variable in self.env))
        return self
