"""Where scripts written for Lightning look for small things: its sub-module layout, under our name."""

from typing import TYPE_CHECKING

from everstep.lazy import names_of
from everstep.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

if TYPE_CHECKING:
    from everstep.utilities.combined_loader import CombinedLoader
    from everstep.utilities.data import suggested_max_num_workers
    from everstep.utilities.grads import grad_norm
    from everstep.utilities.model_helpers import is_overridden
    from everstep.utilities.parsing import AttributeDict

__all__ = [
    "AttributeDict",
    "CombinedLoader",
    "grad_norm",
    "is_overridden",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "suggested_max_num_workers",
]

__getattr__ = names_of(
    __name__,
    {
        "AttributeDict": "parsing",
        "CombinedLoader": "combined_loader",
        "grad_norm": "grads",
        "is_overridden": "model_helpers",
        "suggested_max_num_workers": "data",
    },
)
