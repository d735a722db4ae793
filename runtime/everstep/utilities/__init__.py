"""Where scripts written for Lightning look for small things: its sub-module layout, under our name."""

from everstep.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["rank_zero_info", "rank_zero_only", "rank_zero_warn"]
