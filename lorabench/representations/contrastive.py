"""A contrastive autoencoder of every unit: two views of one adapter are to look alike, those of others are not."""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.errors import LorabenchError
from lorabench.options import Above, AtLeast, Below, OneOf
from lorabench.representations.autoencoder import AutoEncoder, block, relative_error
from lorabench.representations.learned import Learned, Widths
from lorabench.representations.views import Pair, View, disturbed
from lorabench.training import Probability
from lorabench.zoo import Zoo

__all__ = ["Contrastive", "ContrastiveModule", "alignment", "info_nce", "uniformity"]


class ContrastiveModule(AutoEncoder):
    """An autoencoder of two views at a time, with InfoNCE (van den Oord et al. 2018) between them.

    d → hidden → latent with batch norm and dropout, and back; a head of its own, latent → projection, for InfoNCE. The
    loss is the squared distance of what either view decodes to from the view without its noise and mask (in its own
    gauge: which one the adapter came in cannot be known), averaged over inputs and views, plus α · InfoNCE, averaged
    over views. Validation draws one fixed pair of views; features are of weights as they are.

    Args:
        alpha: α.
        temperature: τ of InfoNCE.
        noise: of a view (`View`).
        masked: of a view.
        condition: of a view's gauge.
        pairs: arguments of every `Pair` in the unit that is taken to another gauge.
        dropout: of the encoder's hidden units.
        hidden: widths of the encoder's hidden layers.
        projection: widths of the head.
        options: of `AutoEncoder`.
    """

    def __init__(
        self,
        alpha: Annotated[float | int, AtLeast(0)] = 1.0,
        temperature: Annotated[float | int, Above(0)] = 0.5,
        noise: float | int = 0.2,
        masked: float | int = 0.2,
        condition: float | int = 4.0,
        pairs: list[dict[str, int]] | tuple[dict[str, int], ...] = (),
        dropout: float | int = 0.2,
        hidden: tuple[int, ...] | list[int] = (512, 512),
        projection: tuple[int, ...] | list[int] = (64, 64),
        **options: Any,
    ) -> None:
        super().__init__(
            alpha=alpha, temperature=temperature, noise=noise, masked=masked, condition=condition, pairs=list(pairs),
            dropout=dropout, hidden=list(hidden), projection=list(projection), **options,
        )  # fmt: skip
        self.alpha, self.temperature = alpha, temperature

    def build(self) -> None:
        """Encoder, decoder, head and the two views."""
        given = self.hparams
        widths = [self.in_features, *given["hidden"]]
        self.encoder = nn.Sequential(
            *(block(a, b, given["dropout"]) for a, b in pairwise(widths)),
            nn.Linear(widths[-1], self.latent_dim),
        )
        self.decoder = _perceptron([self.latent_dim, *reversed(given["hidden"]), self.in_features])
        self.head = _perceptron([self.latent_dim, *given["projection"]])
        pairs = [Pair(**pair) for pair in given["pairs"]]
        self.views = nn.ModuleList([View(pairs, given["noise"], given["masked"], given["condition"]) for _ in range(2)])

    def encode(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch latent"]:
        """The latent vector."""
        latent: Tensor = self.encoder(x)
        return latent

    def _both(self, x: Float[Tensor, "batch d"]) -> tuple[Float[Tensor, "twice latent"], Float[Tensor, "twice d"]]:
        """Latent vectors of two views, one after the other, and these views without noise and mask."""
        views = [view for view in self.views if isinstance(view, View)]
        clean = [view.regauged(x, self.mean, self.scale) for view in views]
        return self.encode(disturbed(views, clean)), torch.cat(clean)

    def losses(self, x: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
        """`loss`, `reconstruction` and `info_nce`, as the class says."""
        latent, clean = self._both(x)
        reconstruction = (self.decoder(latent) - clean).square().mean()
        first, second = self.head(latent).chunk(2)
        contrast = info_nce(first, second, self.temperature)
        return {"loss": reconstruction + self.alpha * contrast, "reconstruction": reconstruction, "info_nce": contrast}

    def diagnostics(self, x: Float[Tensor, "batch d"]) -> dict[str, Any]:
        """Relative reconstruction error; alignment and uniformity of what the head says, on the unit sphere.

        Uniformity is the mean of both views', as in its authors' own code: positives are no pairs of it.
        """
        first, second = self.head(self._both(x)[0]).chunk(2)
        return {
            "reconstruction_error": relative_error(x, self.decoder(self.encode(x))),
            "alignment": float(alignment(first, second)),
            "uniformity": float(uniformity(first) + uniformity(second)) / 2,
        }


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for a, b in pairwise(widths[1:]):
        layers += [nn.ReLU(), nn.Linear(a, b)]
    return nn.Sequential(*layers)


def info_nce(
    first: Float[Tensor, "batch f"], second: Float[Tensor, "batch f"], temperature: float | int
) -> Float[Tensor, ""]:
    """-log of the share of e^{cos/τ} that an adapter's other view has among all other views, averaged over views.

    NT-Xent of Chen et al. 2020 (SimCLR): with n adapters, a view has one positive and 2(n - 1) negatives.
    """
    n = len(first)
    views = F.normalize(torch.cat([first, second]), dim=-1)
    alike = views @ views.mT / temperature
    itself = torch.eye(2 * n, dtype=torch.bool, device=alike.device)
    positive = torch.cat([alike.diagonal(n), alike.diagonal(-n)])
    return (alike.masked_fill(itself, -torch.inf).logsumexp(-1) - positive).mean()


def alignment(first: Float[Tensor, "batch f"], second: Float[Tensor, "batch f"]) -> Float[Tensor, ""]:
    """Mean squared distance of positives on the unit sphere (Wang & Isola 2020); 0 is best."""
    return (F.normalize(first, dim=-1) - F.normalize(second, dim=-1)).square().sum(-1).mean()


def uniformity(views: Float[Tensor, "batch f"]) -> Float[Tensor, ""]:
    """Log of the mean of e^{-2‖a - b‖²} over all pairs on the unit sphere (Wang & Isola 2020); lower is better."""
    return torch.pdist(F.normalize(views, dim=-1)).square().mul(-2).exp().mean().log()


@dataclass
class Contrastive(Learned):
    """Latent vectors of a contrastive autoencoder trained on every unit's flattened weights, [N, latent].

    Where the unit holds both factors of a module (scope module or all), the views are gauges of one ΔW.

    What is not named here is an option of `Learned`.

    Args:
        alpha: weight of InfoNCE beside the reconstruction error.
        temperature: of InfoNCE.
        views: "gauge", "noise", or "auto" for gauge where the unit has both factors and noise elsewhere; noise and
            masks come on top of a gauge.
        noise: standard deviation of what is added to a view's standardised weights.
        masked: share of a view's weights that are dropped.
        condition: largest condition number of a view's gauge.
        dropout: of the encoder's hidden units.
        hidden: widths of the encoder's hidden layers, the decoder's backwards.
        projection: widths of the head that InfoNCE looks at.
    """

    latent: ClassVar[tuple[int, int]] = (5, 128)

    alpha: Annotated[float | int, AtLeast(0)] = 1.0
    temperature: Annotated[float | int, Above(0)] = 0.5
    views: Annotated[str, OneOf(["auto", "gauge", "noise"])] = "auto"
    noise: Annotated[float | int, AtLeast(0)] = 0.2
    masked: Annotated[float | int, AtLeast(0), Below(1)] = 0.2
    condition: Annotated[float | int, AtLeast(1)] = 4.0
    dropout: Probability = 0.2
    hidden: Widths = field(default_factory=lambda: [512, 512])
    projection: Widths = field(default_factory=lambda: [64, 64])

    @classmethod
    def kind(cls) -> type[AutoEncoder]:
        """`ContrastiveModule`."""
        return ContrastiveModule

    def check(self) -> None:
        """As every representation; gauges need factors."""
        super().check()
        if self.views == "gauge" and self._delta:
            raise LorabenchError(
                "representation.views=gauge with on=delta: no gauge changes what is read; take views=noise or auto"
            )

    def _architecture(self, zoo: Zoo, unit: str) -> dict[str, Any]:
        found = super()._architecture(zoo, unit)
        del found["views"]
        return {**found, "pairs": [asdict(pair) for pair in self._pairs(zoo, unit)]}

    def _pairs(self, zoo: Zoo, unit: str) -> list[Pair]:
        if self._delta:
            return []  # no gauge changes what is read
        layers = self.layers_of(zoo, unit)
        starts, at = {}, 0
        for layer in layers:
            starts[layer] = at
            at += zoo.layers[layer].shape[1] * zoo.layers[layer].shape[2]
        found = [
            Pair(starts[module.down], starts[module.up], *zoo.shape_of(module.name))
            for module in zoo.modules
            if module.down in starts and module.up in starts
        ]
        if self.views == "gauge" and not found:
            raise LorabenchError(
                f"representation.views=gauge needs both factors of a module in a unit, and {unit} has one; take "
                "representation.scope=module or all, or views=noise"
            )
        return [] if self.views == "noise" else found
