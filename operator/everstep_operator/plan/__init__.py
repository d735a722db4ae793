"""The planner: a pure function from what a run should be and what is observed to the next actions and status."""

from everstep_operator.plan.observe import observe
from everstep_operator.plan.planner import make_plan

__all__ = ["make_plan", "observe"]
