"""LoRA: ΔW = scale · up @ down (Hu et al. 2021); with convolutions, Tucker cores and merged projections."""

import math
from typing import TYPE_CHECKING, ClassVar

from lorabench.adapters.kinds.base import Factors, Fit, Kind, Shape, Shapes, Stored, widths_of
from lorabench.adapters.layouts import Layout

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

__all__ = ["KIND", "MOST_GROUPS", "Lora"]

MOST_GROUPS = 16
"""Parts of a merged projection; more than any layer has."""

_MOST_WINDOW = 1024
"""Entries of a convolution's window; more than any adapter has."""


class Lora(Kind):
    """A pair down [r, d_in] and up [d_out, r].

    - A convolution has down [r, in, k, k] and up [d_out, r, 1, 1]: ΔW [d_out, in·k·k].
    - A Tucker core mid [r, r, k, k] (LyCORIS) makes down Σ_b mid[a, b] down[b].
    - loralib's and PEFT's merged projection of g parts has down [g·r, d_in] and up [d_out', r(, 1)]: one
      block-diagonal up, with zero rows for the parts that are switched off.
    - Factors for x·A·B are stored transposed, A [d_in, r] and B [r, d_out]; MLX's always are.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    wanted: ClassVar[str] = "down must be [r, d_in] and up [d_out, r] with one r > 0 for both."
    example: ClassVar[Shapes] = {"lora_down.weight": (3, 8), "lora_up.weight": (6, 3)}
    peft_type: ClassVar[str] = "LORA"
    pair: ClassVar[bool] = True

    def fit(self, layout: Layout, shapes: Shapes) -> Fit:
        """See `Kind.fit`; where r is smaller than both outer sizes, the transposed reading is taken."""
        down, up = shapes["down"], shapes["up"]
        if min(len(down), len(up)) < 2 or min(down + up) == 0:
            raise ValueError("")
        if "mid" in shapes:
            return _tucker(layout, down, shapes["mid"], up)
        if layout.transposed:
            if len(down) != 2 or len(up) != 2 or down[1] != up[0]:
                raise ValueError("")
            return Fit(up[0], transposed=True)
        pair = down[0] == up[1] and math.prod(up[2:]) == 1
        if len(down) == len(up) == 2 and down[1] == up[0] < min(down[0], up[1]):
            return Fit(up[0], transposed=True, plain=Fit(up[1]) if pair else None)
        groups = _groups(layout, down, up)
        if groups:
            return Fit(up[1], groups, up[0] * down[0])
        if not pair:
            raise ValueError("")
        return Fit(up[1])

    def widths(self, shapes: Shapes, rank: int) -> tuple[int, int] | None:
        """See `Kind.widths`."""
        return widths_of(shapes.get("up", ()), shapes.get("down", ()), rank)

    def factors(self, stored: Stored) -> Factors:
        """See `Kind.factors`."""
        import torch

        down, up = stored.parts["down"], stored.parts["up"]
        kernel, notes = tuple(down.shape[2:]), tuple[str, ...]()
        if "mid" in stored.parts:
            mid = stored.parts["mid"]
            down, kernel = torch.einsum("abk,bi->aik", mid.flatten(2), down.flatten(1)), tuple(mid.shape[2:])
        if stored.fit.transposed:
            down, up = down.mT, up.mT
            notes = () if stored.layout.transposed else (TRANSPOSED,)
        elif stored.fit.groups:
            up = _block_diagonal(up.flatten(1), stored.fit.groups, stored.switched_on)
        return Factors(down.flatten(1).contiguous(), up.flatten(1).contiguous(), notes, kernel)


TRANSPOSED = "factors are stored transposed (x·A·B: A [d_in, r], B [r, d_out]), and were turned"


def _tucker(layout: Layout, down: Shape, mid: Shape, up: Shape) -> Fit:
    window = math.prod(mid[2:])
    square = len(mid) > 2 and mid[0] == mid[1] == down[0] == up[1] and 0 < window <= _MOST_WINDOW
    if not square or layout.transposed or math.prod(up[2:]) != 1:
        raise ValueError(f"Its Tucker core {list(mid)} must be [r, r, k, k] over down [r, ...] and up [d_out, r].")
    return Fit(mid[0], entries=mid[0] * math.prod(down[1:]) * window)


def _groups(layout: Layout, down: Shape, up: Shape) -> int:
    """Parts of a merged projection, up [d_out', r(, 1)] over down [g·r, d_in]; 0 if it is none."""
    if len(down) != 2 or not ((len(up) == 3 and up[2] == 1) or (layout.merged and len(up) == 2)):
        return 0
    if len(up) == 2 and down[0] == up[1]:
        return 0
    groups, rest = divmod(down[0], up[1])
    if rest or not 0 < groups <= MOST_GROUPS or up[0] % groups:
        raise ValueError(
            f"A merged projection has down [g·r, d_in] and up [d_out, r] of g parts, g at most {MOST_GROUPS}."
        )
    return groups


def _block_diagonal(
    up: "Float32[Tensor, 'd_out r']", groups: int, switched_on: tuple[bool, ...]
) -> "Float32[Tensor, 'rows gr']":
    import torch

    height, rank = up.shape[0] // groups, up.shape[1]
    whole = torch.zeros(height * len(switched_on), rank * groups)
    for i, at in enumerate(at for at, on in enumerate(switched_on) if on):
        whole[at * height : (at + 1) * height, i * rank : (i + 1) * rank] = up[i * height : (i + 1) * height]
    return whole


KIND = Lora()
