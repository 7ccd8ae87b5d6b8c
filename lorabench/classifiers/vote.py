"""DSiRe's vote: every spectrum of an adapter names the class of its nearest neighbour."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from lorabench import lowrank
from lorabench.classifiers.at_once import AtOnce, Keeper
from lorabench.classifiers.factors import split
from lorabench.options import AtLeast, OneOf
from lorabench.zoo import ModuleShape

__all__ = ["Vote", "spectra_of"]

_LEAST = 1e-6  # of a share
_NEAR = 1e-4  # of a distance, in parts of the largest value of all spectra: rounding is far below


def spectra_of(
    x: Float[Tensor, "n f"], shapes: Sequence[ModuleShape], published: bool
) -> Float64[Tensor, "n spectra r"]:
    """Singular values of ΔW of every module; with `published` of down, of up and of ΔW of each, in this order.

    Args:
        x: factors of n adapters (`lorabench.classifiers.factors.joined`), the scale in `up`.
        shapes: of the modules.
        published: whether those of the factors are there, which change with the gauge.
    """
    found: list[Tensor] = []
    for module in split(x, shapes):
        found += [lowrank.matrix_singular_values(factor) for factor in module] if published else []
        found.append(lowrank.thin_svd(module.down, module.up)[1])  # exact where a padded rank is zero
    longest = max(shape.rank for shape in shapes)
    return torch.stack([pad(sigma, (0, longest - sigma.shape[-1])) for sigma in found], 1)


class _Spectra(Keeper):
    """Spectra of the training adapters, in parts of the largest value that any of them has."""

    def __init__(self, shapes: Sequence[ModuleShape], n_classes: int, k: int, published: bool, soft: bool) -> None:
        super().__init__()
        self.shapes, self.n_classes, self.k = tuple(shapes), n_classes, k
        self.published, self.soft = published, soft
        self.keep("spectra", torch.zeros(0, 1, 1, dtype=torch.float64))
        self.keep("classes", torch.zeros(0, dtype=torch.int64))
        self.keep("largest", torch.ones((), dtype=torch.float64))

    def learn(self, x: Float[Tensor, "n f"], y: Int64[Tensor, " n"]) -> None:
        """Keep the spectra, scaled by their largest value."""
        found = spectra_of(x, self.shapes, self.published)
        self.keep("largest", found.max())
        self.keep("spectra", self._scaled(found))
        self.keep("classes", y)

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        """Logarithm of what every class has of the votes."""
        found = self._scaled(spectra_of(x, self.shapes, self.published))
        kept: Tensor = self.spectra.transpose(0, 1)  # type: ignore[operator]
        exact = "donot_use_mm_for_euclid_dist"  # products lose what is near
        distances = self._to_classes(torch.cdist(found.transpose(0, 1), kept, compute_mode=exact))
        votes = self._shares(distances) if self.soft else self._counts(distances)
        logits: Tensor = votes.clamp_min(_LEAST).log().to(x.dtype)
        return logits

    def _scaled(self, spectra: Float64[Tensor, "n spectra r"]) -> Float64[Tensor, "n spectra r"]:
        largest: Tensor = self.largest  # type: ignore[assignment]
        return spectra / torch.where(largest > 0, largest, 1.0)

    def _to_classes(self, distances: Float64[Tensor, "spectra batch n"]) -> Float64[Tensor, "batch spectra classes"]:
        """Mean distance to the k nearest adapters of every class; infinite where a class has none."""
        found = []
        for number in range(self.n_classes):
            own = distances[..., self.classes == number]
            nearest = own.topk(min(self.k, own.shape[-1]), largest=False).values
            found.append(nearest.mean(-1) if own.shape[-1] else own.new_full(own.shape[:-1], torch.inf))
        return torch.stack(found, -1).transpose(0, 1)

    def _counts(self, distances: Float64[Tensor, "batch spectra classes"]) -> Float64[Tensor, "batch classes"]:
        """Share of the spectra whose nearest class it is; of as many votes, those of the first spectrum weigh more."""
        votes = one_hot(distances.argmin(-1), self.n_classes).double()
        spectra = votes.shape[1]
        first = torch.where(votes.any(1), spectra - votes.argmax(1), 0) / (spectra + 1)  # below a vote
        return (votes.sum(1) + first) / spectra

    def _shares(self, distances: Float64[Tensor, "batch spectra classes"]) -> Float64[Tensor, "batch classes"]:
        """Every spectrum gives each class a share as the inverse of its distance; the mean over the spectra."""
        inverse = 1 / (distances + _NEAR)
        return (inverse / inverse.sum(-1, keepdim=True)).mean(1)


class Vote(AtOnce):
    """The vote over spectra of DSiRe (arXiv 2406.19395): each names the nearest class, and the majority is said.

    Spectra are those of up @ down of every module, with `published` also those of the factors, which a gauge changes.
    All are scaled from 0 to 1 by the largest value that any training adapter has (the least is 0, which a padded rank
    has). The distance of a spectrum to a
    class is Euclidean, the mean to the k nearest training adapters of that class; k = 1 is the nearest neighbour, as
    published. Of classes with as many votes, the one is said that a spectrum named first.

    Args:
        spectra: "published": of down, of up and of ΔW; "invariant": of ΔW alone.
        votes: "hard": each spectrum has one vote; "soft": it gives every class a share as the inverse of its distance.
        k: neighbours of each class.
        **settings: those of `FactorClassifier`.
    """

    def __init__(
        self,
        spectra: Annotated[str, OneOf(["published", "invariant"])] = "published",
        votes: Annotated[str, OneOf(["hard", "soft"])] = "hard",
        k: Annotated[int, AtLeast(1)] = 1,
        **settings: Any,
    ) -> None:
        super().__init__(spectra=spectra, votes=votes, k=k, **settings)

    @property
    def gauge_invariant(self) -> bool:
        """Of spectra of ΔW alone."""
        return bool(self.hparams["spectra"] == "invariant")

    def build(self) -> nn.Module:
        """See the class."""
        published, soft = self.hparams["spectra"] == "published", self.hparams["votes"] == "soft"
        return _Spectra(self.shapes, self.n_classes, self.hparams["k"], published, soft)
