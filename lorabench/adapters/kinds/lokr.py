"""LoKr (Yeh et al. 2024, LyCORIS): ΔW = scale · W1 ⊗ W2, each whole or of low rank."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from lorabench.adapters.kinds.base import Factors, Fit, Kind, Shapes, Stored, entries_of, halves, matrix_of
from lorabench.adapters.kinds.tucker import low_rank, unfold, unfolded_entries
from lorabench.adapters.layouts import Layout
from lorabench.adapters.reading.scaling import Scale, Stated, find_scale

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

__all__ = ["KIND", "LoKr"]


class LoKr(Kind):
    """A Kronecker product; up and down are the Kronecker products of those of W1 and W2.

    Where the rank so found is over the short side of ΔW, the long side's matrix is ΔW itself and the other one the
    identity.
    """

    name: ClassVar[str] = "lokr"
    title: ClassVar[str] = "LoKr"
    marks: ClassVar[re.Pattern[str] | None] = re.compile(r"\.lokr_(?P<part>w1|w1_a|w1_b|w2|w2_a|w2_b|t2)(\.[^.]+)?$")
    hint: ClassVar[re.Pattern[str] | None] = re.compile(r"\.lokr_")
    needed: ClassVar[tuple[frozenset[str], ...]] = tuple(
        frozenset({f"w{i}", f"w{i}_{half}"}) for i in (1, 2) for half in "ab"
    )
    wanted: ClassVar[str] = "w1 and w2 must be matrices, or pairs [rows, r] and [r, columns]."
    example: ClassVar[Shapes] = {"lokr_w1": (2, 2), "lokr_w2": (3, 4)}
    peft_type: ClassVar[str] = "LOKR"
    windowless: ClassVar[bool] = True
    rankless: ClassVar[bool] = True  # of two whole matrices

    def fit(self, layout: Layout, shapes: Shapes) -> Fit:  # noqa: ARG002 - its names do not matter
        """See `Kind.fit`; of two pairs, LyCORIS and PEFT have one rank."""
        rank, sides = 0, []
        for i in (1, 2):
            if f"w{i}" in shapes:
                if {f"w{i}_a", f"w{i}_b", f"t{i}"} & set(shapes):
                    raise ValueError(f"w{i} is there whole and in factors.")
                rows, cols = matrix_of(shapes[f"w{i}"])
                sides.append((rows, min(rows, cols), cols))
            else:
                sides.append(low_rank(shapes, i))
                rank = sides[-1][1]
        (rows, inner, cols), (other_rows, other_inner, other_cols) = sides
        entries = entries_of(rows * other_rows, cols * other_cols, inner * other_inner)
        return Fit(rank, entries=max(entries, unfolded_entries(shapes, 2)))

    def widths(self, shapes: Shapes, rank: int) -> tuple[int, int] | None:  # noqa: ARG002 - it says nothing of sides
        """See `Kind.widths`."""
        first, second = (shapes.get(part) or _joined(shapes, part) for part in ("w1", "w2"))
        return (first[0] * second[0], first[1] * second[1]) if len(first) > 1 and len(second) > 1 else None

    def factors(self, stored: Stored) -> Factors:
        """See `Kind.factors`."""
        (up1, down1, first), (up2, down2, second) = (_side(stored.parts, i) for i in (1, 2))
        kernel = second or first
        out, into = up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1]
        if up1.shape[1] * up2.shape[1] > min(out, into):
            up, down = halves(_kron(up1 @ down1, up2 @ down2))
            note = "LoKr: ΔW may have full rank, and is given by itself and the identity"
        else:
            up, down = _kron(up1, up2), _kron(down1, down2)
            note = f"LoKr: a Kronecker product, given by factors of rank {up.shape[1]}"
        return Factors(down.contiguous(), up.contiguous(), (note,), kernel)

    def scale(self, stated: Stated) -> Scale:
        """α/r; of two whole matrices PEFT divides by the r of its configuration, and LyCORIS' scale is 1."""
        if stated.rank:
            return find_scale(replace(stated, alpha_entry="alpha"))
        if stated.alpha is not None or not stated.config:
            note = () if stated.alpha is None else ("LoKr of two whole matrices: its alpha counts for nothing",)
            return Scale(1.0, stated.alpha, note, "none is needed", "1")
        asked = stated.asked_rank()
        return replace(find_scale(replace(stated, alpha_entry="alpha", rank=asked)), assumed=())


def _kron(first: "Float32[Tensor, 'a b']", second: "Float32[Tensor, 'c d']") -> "Float32[Tensor, 'ac bd']":
    """The Kronecker product; `torch.kron` refuses the strides that a transposed row has (torch 2.13)."""
    import torch

    product = torch.einsum("ab,cd->acbd", first, second)
    return product.reshape(len(first) * len(second), -1)


def _joined(shapes: Shapes, part: str) -> tuple[int, ...]:
    """The shape of a W that is a product itself."""
    return (*shapes.get(f"{part}_a", ())[:1], *shapes.get(f"{part}_b", ())[1:2])


def _side(
    parts: "Mapping[str, Tensor]", i: int
) -> "tuple[Float32[Tensor, 'rows k'], Float32[Tensor, 'k cols'], tuple[int, ...]]":
    """Up and down of W1 or W2, and the window of a convolution where it has one."""
    whole = parts.get(f"w{i}")
    return unfold(parts, i) if whole is None else (*halves(whole.flatten(1)), tuple(whole.shape[2:]))


KIND = LoKr()
