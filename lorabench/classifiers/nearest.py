"""k-nearest neighbours on the cosine of ΔW, which is never formed."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from lorabench import lowrank
from lorabench.classifiers.at_once import AtOnce, Keeper
from lorabench.classifiers.factors import split
from lorabench.options import AtLeast, OneOf
from lorabench.zoo import ModuleShape

__all__ = ["Nearest", "cosines"]

_LEAST = 1e-6  # the share of a class without a vote


def cosines(
    x: Float[Tensor, "n f"], other: Float[Tensor, "m f"], shapes: Sequence[ModuleShape]
) -> Float64[Tensor, "n m"]:
    """⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖) of every pair of adapters, over all modules together; 0 beside an adapter of zeros.

    Args:
        x: factors of n adapters (`lorabench.classifiers.factors.joined`).
        other: of m adapters.
        shapes: of the modules.
    """
    products = torch.zeros(len(x), len(other), dtype=torch.float64, device=x.device)
    squares = [torch.zeros(len(side), dtype=torch.float64, device=x.device) for side in (x, other)]
    for ours, theirs in zip(split(x, shapes), split(other, shapes), strict=True):
        products += lowrank.inner_products((ours.down, ours.up), (theirs.down, theirs.up))
        for square, one in zip(squares, (ours, theirs), strict=True):
            square += lowrank.inner_product((one.down, one.up, 1.0), (one.down, one.up, 1.0))
    lengths = squares[0].clamp_min(0).sqrt()[:, None] * squares[1].clamp_min(0).sqrt()
    return torch.where(lengths > 0, products / lengths, 0.0)


class _Neighbours(Keeper):
    """The training adapters themselves."""

    def __init__(self, shapes: Sequence[ModuleShape], n_classes: int, k: int, weighted: bool) -> None:
        super().__init__()
        self.shapes, self.n_classes, self.k, self.weighted = tuple(shapes), n_classes, k, weighted
        self.learn(torch.zeros(0, sum(shape.size for shape in shapes)), torch.zeros(0, dtype=torch.int64))

    def learn(self, x: Float[Tensor, "n f"], y: Int64[Tensor, " n"]) -> None:
        """Keep them."""
        self.keep("factors", x)
        self.keep("classes", y)

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        """Logarithm of each class's share of the votes."""
        alike, nearest = cosines(x, self.factors, self.shapes).topk(min(self.k, len(self.factors)), 1)  # type: ignore[arg-type]
        votes = alike.clamp_min(0) + _LEAST if self.weighted else torch.ones_like(alike)
        found = votes.new_zeros(len(x), self.n_classes).scatter_add_(1, self.classes[nearest], votes)  # type: ignore[index]
        return (found / found.sum(1, keepdim=True)).clamp_min(_LEAST).log().to(x.dtype)


class Nearest(AtOnce):
    """The class that most of the k training adapters with the highest cosine of ΔW have (Cover & Hart 1967).

    The cosine is that of all modules' ΔW in one vector, from r × r products. Classes with as many votes are named in
    their order.

    Args:
        k: number of neighbours; all there are, where there are fewer.
        weights: "equal": each neighbour has one vote; "cosine": as many as its cosine, none below 0.
        **settings: those of `FactorClassifier`.
    """

    def __init__(
        self,
        k: Annotated[int, AtLeast(1)] = 1,
        weights: Annotated[str, OneOf(["equal", "cosine"])] = "equal",
        **settings: Any,
    ) -> None:
        super().__init__(k=k, weights=weights, **settings)

    def build(self) -> nn.Module:
        """See the class."""
        return _Neighbours(self.shapes, self.n_classes, self.hparams["k"], self.hparams["weights"] == "cosine")
