"""Two looks at the same adapter: what a contrastive representation is to take for one and the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorabench.training import Keyed, keep_mask, normal

__all__ = ["Pair", "View", "disturbed", "gauges"]


@dataclass(frozen=True)
class Pair:
    """Where the two factors of a module lie in a flattened unit.

    Attributes:
        down: where down begins.
        up: where up begins.
        rank: r.
        d_in: columns of down, [r, d_in].
        d_out: rows of up, [d_out, r].
    """

    down: int
    up: int
    rank: int
    d_in: int
    d_out: int


def gauges(
    key: Int[Tensor, ""], batch: int, rank: int, condition: float | int, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch r r"], Float[Tensor, "batch r r"]]:
    """Random (G, G⁻¹), as G = Q₁·diag(s)·Q₂ with Q orthogonal, uniformly (Mezzadri 2007), and log s uniform.

    Args:
        key: of the draw.
        batch: how many.
        rank: r.
        condition: s lies between 1/√condition and √condition, so this is the largest condition number.
        dtype: of what is returned.
    """
    numbers = normal(key, batch, 2 * rank * rank + rank, dtype)
    left, right = (_orthogonal(part) for part in numbers[:, rank:].reshape(batch, 2, rank, rank).unbind(1))
    uniform = 2 * torch.special.ndtr(numbers[:, :rank]) - 1
    sizes = (0.5 * math.log(condition) * uniform).exp()
    return (left * sizes[:, None, :]) @ right, (right.mT / sizes[:, None, :]) @ left.mT


def _orthogonal(normals: Float[Tensor, "batch r r"]) -> Float[Tensor, "batch r r"]:
    q, r = torch.linalg.qr(normals)
    # The signs of QR are the algorithm's choice; without them q is uniform over all orthogonal matrices.
    signed: Tensor = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None, :]
    return signed


class View(Keyed):
    """One random look at standardised weights.

    The pairs are taken to another gauge, (up·G, G⁻¹·down), which leaves ΔW as it is; then noise is added to all
    weights, and a share of them is dropped.

    Args:
        pairs: the modules in the unit; none for noise alone.
        noise: standard deviation of what is added to the standardised weights.
        masked: share of the weights that are dropped, and the rest is not scaled for it.
        condition: largest condition number of G.
    """

    def __init__(self, pairs: Sequence[Pair], noise: float | int, masked: float | int, condition: float | int) -> None:
        super().__init__()
        self.pairs, self.noise, self.masked, self.condition = tuple(pairs), noise, masked, condition
        self.others = nn.ModuleList([Keyed() for _ in range(1 + len(self.pairs))])

    def forward(
        self, x: Float[Tensor, "batch d"], mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]
    ) -> Float[Tensor, "batch d"]:
        """Another view of x = (weights - mean) / scale."""
        return disturbed([self], [self.regauged(x, mean, scale)])

    def regauged(
        self, x: Float[Tensor, "batch d"], mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]
    ) -> Float[Tensor, "batch d"]:
        """X in the view's gauge: other weights with the same ΔW."""
        return (self._regauged(x * scale + mean) - mean) / scale if self.pairs else x

    def _regauged(self, raw: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        parts: dict[int, Tensor] = {}
        batch = len(raw)
        for pair, own in zip(self.pairs, self.others[1:], strict=True):
            g, inverse = gauges(own.key, batch, pair.rank, self.condition, raw.dtype)  # type: ignore[arg-type]
            down = raw[:, pair.down : pair.down + pair.rank * pair.d_in].reshape(batch, pair.rank, pair.d_in)
            up = raw[:, pair.up : pair.up + pair.d_out * pair.rank].reshape(batch, pair.d_out, pair.rank)
            parts[pair.down], parts[pair.up] = (inverse @ down).flatten(1), (up @ g).flatten(1)
        found, at = [], 0
        for start in sorted(parts):  # what is no pair's stays
            found += [raw[:, at:start], parts[start]]
            at = start + parts[start].shape[1]
        return torch.cat([*found, raw[:, at:]], 1)


def disturbed(views: Sequence[View], clean: Sequence[Float[Tensor, "batch d"]]) -> Float[Tensor, "all d"]:
    """What the views add to weights in their gauges, noise and mask, one view after the other.

    Their random numbers are drawn in one call: most of a small draw is the way there.
    """
    first, (batch, width) = views[0], clean[0].shape
    x = torch.cat(list(clean))
    if first.noise:
        keys = torch.stack([view.key for view in views])
        x = x + first.noise * normal(keys, batch, width, x.dtype).flatten(0, 1)
    if first.masked:
        others: list[Tensor] = [view.others[0].key for view in views]  # type: ignore[misc]
        x = x * (1 - first.masked) * keep_mask(torch.stack(others), batch, width, first.masked, x.dtype).flatten(0, 1)
    return x
