"""exact, factors side by side, so that ranks add.

Rows of down stacked, columns of w_i · scale_i · up stacked.
"""

from lorabench.adapters.merging.terms import Pairs, Terms

__all__ = ["FIXED_RANK", "factors"]

FIXED_RANK = "its rank is the sum of the parents'"


def factors(terms: Terms) -> Pairs:
    """The factors of all, side by side."""
    down, up = terms.stacked()
    return Pairs(down, up, down.new_zeros(len(down)))
