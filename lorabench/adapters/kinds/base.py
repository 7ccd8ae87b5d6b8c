"""What a kind of module is: which keys mark it, what its shapes say, its factors and its scale.

Nothing here, nor in the kinds, imports torch before factors are asked for: a header is read without it.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabench.adapters.layouts import Layout
from lorabench.adapters.reading.scaling import Scale, Stated, find_scale

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

__all__ = [
    "BESIDE",
    "Factors",
    "Fit",
    "Kind",
    "Shape",
    "Shapes",
    "Stored",
    "entries_of",
    "halves",
    "matrix_of",
    "widths_of",
]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

BESIDE = ("alpha", "ranknum", "lora_magnitude_vector", "dora_scale", "m")
"""Parts that are no factor of ΔW: its scale, a counter, and DoRA's magnitude in PEFT, LyCORIS and MLX."""


@dataclass(frozen=True)
class Fit:
    """What the shapes of a module say.

    Attributes:
        rank: r that scales are divided by; 0 for LoKr of two whole matrices.
        groups: parts of a merged projection; 0 where it is none.
        entries: numbers in the factors that LoHa, LoKr, Tucker cores and merged projections unfold to; 0 for a pair
            that is read as it is stored.
        transposed: whether the factors are stored as x·A·B has them, A [d_in, r] and B [r, d_out].
        plain: the reading as down [r, d_in] and up [d_out, r], where that fits as well.
    """

    rank: int
    groups: int = 0
    entries: int = 0
    transposed: bool = False
    plain: "Fit | None" = None


@dataclass(frozen=True)
class Factors:
    """down [r, d_in] and up [d_out, r] of ΔW / scale in float32, notes, and the window of a convolution."""

    down: "Float32[Tensor, 'r d_in']"
    up: "Float32[Tensor, 'd_out r']"
    notes: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stored:
    """What a file holds of one module.

    Attributes:
        layout: of its keys.
        parts: part -> finite tensor in float32.
        fit: what their shapes say.
        switched_on: of a merged projection: which parts of the layer have rows in the file.
    """

    layout: Layout
    parts: "Mapping[str, Tensor]"
    fit: Fit
    switched_on: tuple[bool, ...] = ()


class Kind(ABC):
    """A kind of module; each lies in a file of its own and is found there."""

    name: ClassVar[str]
    title: ClassVar[str]
    """For people."""
    marks: ClassVar[re.Pattern[str] | None] = None
    """What in a key tells that its module is of this kind, the group `part` naming which of its tensors it is."""
    hint: ClassVar[re.Pattern[str] | None] = None
    """What in a key is this kind's, however the key goes on; what stands before it names the module."""
    needed: ClassVar[tuple[frozenset[str], ...]] = ()
    """What must be there: one part of every set."""
    wanted: ClassVar[str]
    """Which shapes it must have, in a sentence."""
    example: ClassVar[Shapes]
    """The tensors of a module [6, 8], by the ends of their keys: every kind is tested with its own."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Those of the example without which an ordinary pair is left."""
    peft_type: ClassVar[str] = ""
    """PEFT's word for it; "" where PEFT has none of its own."""
    pair: ClassVar[bool] = False
    """Whether it is an ordinary LoRA, of no other kind."""
    windowless: ClassVar[bool] = False
    """Whether a convolution's factors do not say its window, unless they have a core."""
    rankless: ClassVar[bool] = False
    """Whether a module of rank 0 is no mistake."""

    @abstractmethod
    def fit(self, layout: Layout, shapes: Shapes) -> Fit:
        """What the shapes of a module say.

        Args:
            layout: of its keys.
            shapes: part -> shape.

        Raises:
            ValueError: they do not fit together; the message, if any, says more than `wanted`.
        """

    @abstractmethod
    def factors(self, stored: Stored) -> Factors:
        """The two matrices whose product, times the scale, is ΔW."""

    @abstractmethod
    def widths(self, shapes: Shapes, rank: int) -> tuple[int, int] | None:
        """d_out and d_in of the layer, where shapes say them; a convolution's without its window.

        Args:
            shapes: part -> shape, of tensors that need not fit together.
            rank: what `fit` found.
        """

    def scale(self, stated: Stated) -> Scale:
        """The factor in front of up @ down, by what the file and its configuration state.

        Raises:
            LorabenchError: α or a value of the configuration is no finite number.
        """
        return find_scale(stated)


def matrix_of(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor that is flattened after its first axis.

    Raises:
        ValueError: it has fewer than two axes, or is empty.
    """
    if len(shape) < 2 or min(shape) == 0:
        raise ValueError("")
    return shape[0], math.prod(shape[1:])


def widths_of(up: Shape, down: Shape, rank: int) -> tuple[int, int] | None:
    """d_out and d_in of a pair of this rank, whichever way round its matrices are stored."""
    if len(up) < 2 or len(down) < 2 or rank < 1:
        return None
    return up[0] * up[1] // rank, down[0] * down[1] // rank


def entries_of(out: int, into: int, rank: int) -> int:
    """Numbers in both factors of a ΔW [out, into]; where the rank is above its short side, in ΔW itself."""
    return out * into if rank > min(out, into) else rank * (out + into)


def halves(whole: "Float32[Tensor, 'rows cols']") -> "tuple[Float32[Tensor, 'rows k'], Float32[Tensor, 'k cols']]":
    """A matrix as a product of itself and the identity of its short side."""
    import torch

    rows, cols = whole.shape
    return (torch.eye(rows), whole) if rows <= cols else (whole, torch.eye(cols))
