"""spec.failurePolicy: what to do when ranks, pods or nodes die, or never come up."""

from pydantic import Field

from everstep_operator.api.model import Model, Number, Whole
from everstep_operator.api.rules import Rule


class BackoffPolicy(Model):
    initial_seconds: Number = Field(
        default=1.0,
        ge=0,
        le=86_400,
        description="Wait before the second restart in a row that brought no progress.",
    )
    factor: Number = Field(default=2.0, ge=1, le=100, description="Each further wait is this many times longer.")
    max_seconds: Number = Field(default=300.0, ge=0, le=86_400, description="No wait is longer.")

    RULES = (
        Rule(
            lambda b: b.initial_seconds <= b.max_seconds,
            # An API server checks the default {} of this object before it fills in the defaults of the fields.
            "!has(self.initialSeconds) || !has(self.maxSeconds) || self.initialSeconds <= self.maxSeconds",
            "backoff.maxSeconds {maxSeconds} is below initialSeconds {initialSeconds}: "
            "raise maxSeconds or lower initialSeconds",
        ),
    )


class StartupPolicy(Model):
    deadline_seconds: Whole | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="A run that has not finished a training step so long after its start fails, and says what it "
        "waited for. Default: it waits as long as it takes.",
    )


class NodePolicy(Model):
    grace_seconds: Number = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="So long is waited for a node that is NotReady, and for a pod that should be gone but whose node "
        "does not confirm it. Then the pod is deleted by force and replaced on another node.",
    )
    exclude_seconds: Number = Field(
        default=600.0,
        ge=0,
        le=10**9,
        description="So long no pod of this run is placed on a node that was lost.",
    )


class FailurePolicy(Model):
    max_restarts: Whole = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="How often the run restarts after failures. Preemption, drain and suspension do not count.",
    )
    backoff: BackoffPolicy = Field(
        default=BackoffPolicy(), description="Waits between restarts that bring no progress; +-20 % spread."
    )
    startup: StartupPolicy = Field(default=StartupPolicy(), description="How long the run may take to begin training.")
    node: NodePolicy = Field(default=NodePolicy(), description="What to do about nodes that do not answer.")
