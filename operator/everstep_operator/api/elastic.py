"""spec.elasticPolicy: between which bounds, and in which steps, the number of nodes may change."""

from pydantic import Field

from everstep_operator.api.model import Model, Whole
from everstep_operator.api.rules import Rule

MAX_NODES = 10_000


class ElasticPolicy(Model):
    min_nodes: Whole = Field(
        ge=1, le=MAX_NODES, description="Training starts, and goes on after a loss, with this many nodes at least."
    )
    max_nodes: Whole = Field(ge=1, le=MAX_NODES, description="numNodes may be set up to this many.")
    step: Whole = Field(
        default=1,
        ge=1,
        le=MAX_NODES,
        description="Only minNodes plus a multiple of it train together: for tensor parallelism, HSDP, TPU slices.",
    )

    RULES = (
        Rule(
            lambda e: e.min_nodes <= e.max_nodes,
            "self.minNodes <= self.maxNodes",
            "elasticPolicy.maxNodes {maxNodes} is below minNodes {minNodes}: raise maxNodes or lower minNodes",
        ),
        Rule(
            lambda e: (e.max_nodes - e.min_nodes) % e.step == 0,
            "(self.maxNodes - self.minNodes) % self.step == 0",
            "elasticPolicy.maxNodes {maxNodes} is not minNodes {minNodes} plus a multiple of step {step}: "
            "change maxNodes or step",
        ),
    )
