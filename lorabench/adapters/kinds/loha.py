"""LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): ΔW = scale · (W1a·W1b) ∘ (W2a·W2b)."""

import re
from dataclasses import replace
from typing import ClassVar

from lorabench.adapters.kinds.base import Factors, Fit, Kind, Shapes, Stored, entries_of, halves, widths_of
from lorabench.adapters.kinds.tucker import low_rank, unfold, unfolded_entries
from lorabench.adapters.layouts import Layout
from lorabench.adapters.reading.scaling import Scale, Stated, find_scale

__all__ = ["KIND", "LoHa"]


class LoHa(Kind):
    """The Hadamard product of two products of rank r, whose rank is at most r².

    A row of up is the Kronecker product of the rows of W1a and W2a, a column of down that of the columns of W1b and
    W2b. Where r² is over the short side of ΔW, the long side's matrix is ΔW itself and the other one the identity.
    """

    name: ClassVar[str] = "loha"
    title: ClassVar[str] = "LoHa"
    marks: ClassVar[re.Pattern[str] | None] = re.compile(r"\.hada_(?P<part>w1_a|w1_b|w2_a|w2_b|t1|t2)(\.[^.]+)?$")
    hint: ClassVar[re.Pattern[str] | None] = re.compile(r"\.hada_")
    needed: ClassVar[tuple[frozenset[str], ...]] = tuple(frozenset({part}) for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    wanted: ClassVar[str] = "Both halves must be [d_out, r] and [r, d_in], of the same d_out and d_in."
    example: ClassVar[Shapes] = {
        "hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (6, 2), "hada_w2_b": (2, 8)
    }  # fmt: skip
    peft_type: ClassVar[str] = "LOHA"
    windowless: ClassVar[bool] = True

    def fit(self, layout: Layout, shapes: Shapes) -> Fit:  # noqa: ARG002 - its names do not matter
        """See `Kind.fit`."""
        if ("t1" in shapes) != ("t2" in shapes):
            raise ValueError("One Tucker core of two is missing.")
        (rows, rank, cols), (other_rows, other_rank, other_cols) = (low_rank(shapes, i) for i in (1, 2))
        if (rows, cols) != (other_rows, other_cols):
            raise ValueError("")
        inner = sum(unfolded_entries(shapes, i) for i in (1, 2))
        return Fit(rank, entries=max(entries_of(rows, cols, rank * other_rank), inner))

    def widths(self, shapes: Shapes, rank: int) -> tuple[int, int] | None:
        """See `Kind.widths`."""
        return widths_of(shapes.get("w1_a", ()), shapes.get("w1_b", ()), rank)

    def factors(self, stored: Stored) -> Factors:
        """See `Kind.factors`."""
        (up1, down1, _), (up2, down2, kernel) = (unfold(stored.parts, i) for i in (1, 2))
        if up1.shape[1] * up2.shape[1] > min(up1.shape[0], down1.shape[1]):
            up, down = halves((up1 @ down1) * (up2 @ down2))
            note = "LoHa: ΔW may have full rank, and is given by itself and the identity"
            return Factors(down.contiguous(), up.contiguous(), (note,), kernel)
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
        note = (
            f"LoHa of rank {stored.fit.rank}: ΔW has rank {up.shape[1]} at most, and is given by factors of that rank"
        )
        return Factors(down.contiguous(), up.contiguous(), (note,), kernel)

    def scale(self, stated: Stated) -> Scale:
        """α/r, by the α tensor or by PEFT's `alpha`."""
        return find_scale(replace(stated, alpha_entry="alpha"))


KIND = LoHa()
