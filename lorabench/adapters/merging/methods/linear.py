"""averaged factors, not exact for their cross terms.

(Σ √|w_i·s_i| · up_i) @ (Σ ±√|w_i·s_i| · down_i), as PEFT's `add_weighted_adapter` has it, with s_i = scale_i and the
sign of w_i·s_i.
"""

from lorabench.adapters.merging.terms import Pairs, Terms

__all__ = ["EQUAL_RANKS", "FIXED_RANK", "NOTE", "factors"]

FIXED_RANK = "it keeps the parents' rank"
EQUAL_RANKS = "averages factors"
NOTE = "linear averages factors; its error is that of the cross terms, up of one times down of another"


def factors(terms: Terms) -> Pairs:
    """The weighted sums of the downs and of the ups."""
    down = up = terms.each[0][0].new_zeros(())
    for own_down, own_up, factor in terms.each:
        root = factor.abs().sqrt()[:, None, None]
        up, down = up + root * own_up, down + factor.sign()[:, None, None] * root * own_down
    return Pairs(down, up, terms.distances(down, up)[0])
