"""How much a file may unfold to: small LoHa and LoKr can claim any size."""

__all__ = ["MOST_ENTRIES", "MOST_TOGETHER"]

MOST_ENTRIES = 2**28
"""Numbers that the factors of one module may have."""
MOST_TOGETHER = 2**31
"""Numbers that all factors of a file may have together that unfold to more than is stored: 8 GiB in float32."""
