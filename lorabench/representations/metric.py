"""An embedding of every module's ΔW with adapters of one class near each other, learned from training labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.errors import LorabenchError
from lorabench.options import Above, AtLeast, OneOf
from lorabench.representations.autoencoder import AutoEncoder, block
from lorabench.representations.base import On
from lorabench.representations.contrastive import uniformity
from lorabench.representations.learned import Learned, Widths
from lorabench.representations.reading import classes_of
from lorabench.training import Probability, SeededNoise
from lorabench.zoo import Zoo

__all__ = ["Metric", "MetricModule", "supervised_contrast"]

_FEWEST_OF_A_CLASS = 4  # two to train on and two to stop by


class MetricModule(AutoEncoder):
    """An encoder onto the unit sphere, trained by `supervised_contrast`; nothing is decoded.

    d → hidden → latent with batch norm and dropout, then divided by its length. Training adds noise to the standardised
    input; validation and features are of inputs as they are.

    Args:
        temperature: τ of the loss.
        noise: standard deviation of what is added to the standardised input.
        dropout: of the hidden units.
        hidden: widths of the hidden layers.
        options: of `AutoEncoder`.
    """

    def __init__(
        self,
        temperature: float | int = 0.1,
        noise: float | int = 0.2,
        dropout: float | int = 0.2,
        hidden: tuple[int, ...] | list[int] = (256,),
        **options: Any,
    ) -> None:
        super().__init__(temperature=temperature, noise=noise, dropout=dropout, hidden=list(hidden), **options)
        self.temperature, self.noise = temperature, noise

    def build(self) -> None:
        """The encoder."""
        widths = [self.in_features, *self.hparams["hidden"]]
        self.draw = SeededNoise()
        self.encoder = nn.Sequential(
            *(block(a, b, self.hparams["dropout"]) for a, b in pairwise(widths)),
            nn.Linear(widths[-1], self.latent_dim),
        )

    def encode(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch latent"]:
        """A point of the unit sphere."""
        return F.normalize(self.encoder(x), dim=-1)

    def losses(self, x: Float[Tensor, "batch d"], classes: Int64[Tensor, " batch"] | None = None) -> dict[str, Tensor]:
        """`loss`, as the class says; without classes each row is one of its own, and there is nothing to learn."""
        seen = x + self.noise * self.draw(x) if self.training else x
        of = torch.arange(len(x), device=x.device) if classes is None else classes
        return {"loss": supervised_contrast(self.encode(seen), of, self.temperature)}

    def diagnostics(
        self, x: Float[Tensor, "batch d"], classes: Int64[Tensor, " batch"] | None = None
    ) -> dict[str, Any]:
        """Mean squared distance of two of a class, uniformity, and how often the nearest neighbour is of one's class.

        All are of the rows at hand alone: those that decide when to stop.
        """
        of = torch.arange(len(x), device=x.device) if classes is None else classes
        z = self.encode(x)
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        alike, same = z @ z.mT, of[:, None] == of
        nearest = alike.masked_fill(itself, -torch.inf).argmax(-1)
        return {
            "alignment": float((2 - 2 * alike)[same & ~itself].mean().nan_to_num(0.0)),
            "uniformity": float(uniformity(z)),
            "neighbour_accuracy": float((of[nearest] == of).double().mean()),
        }


def supervised_contrast(
    points: Float[Tensor, "batch f"], classes: Int64[Tensor, " batch"], temperature: float | int
) -> Float[Tensor, ""]:
    """The supervised contrastive loss "out" of Khosla et al. 2020 over points of the unit sphere.

    For a point i with others P(i) of its class, -1/|P(i)| · Σ_{p ∈ P(i)} log(e^{zᵢ·z_p/τ} / Σ_{a ≠ i} e^{zᵢ·z_a/τ});
    averaged over the points that have such, and 0 where none has.

    Args:
        points: z, of length 1.
        classes: of the points.
        temperature: τ.

    Example:
        >>> points = torch.eye(2)[[0, 0, 1, 1]]
        >>> near, far = (supervised_contrast(points, torch.tensor(one), 0.1) for one in ([0, 0, 1, 1], [0, 1, 0, 1]))
        >>> round(near.item(), 4), round(far.item(), 4)
        (0.0001, 10.0001)
    """
    alike = points @ points.mT / temperature
    itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
    positive = (classes[:, None] == classes) & ~itself
    log_share = alike - alike.masked_fill(itself, -torch.inf).logsumexp(-1, keepdim=True)
    count = positive.sum(-1)
    each = -(log_share * positive).sum(-1) / count.clamp_min(1)
    found: Tensor = each.sum() / (count > 0).sum().clamp_min(1)
    return found


@dataclass
class Metric(Learned):
    """Points of the unit sphere, where adapters of one class are near each other, [N, latent].

    It learns from the classes of the training rows, of which pairs are set aside to stop by; whoever reads its features
    is to know that those of training rows are better parted than those of new ones are. A run with permuted labels
    permutes what the classifier learns, and not what this has learned: that control watches the classifier alone.

    What is not named here is an option of `Learned`.

    Args:
        temperature: τ of the loss.
        noise: standard deviation of what is added to the standardised input while it trains.
        dropout: of the hidden units.
        hidden: widths of the hidden layers.
    """

    supervised: ClassVar[bool] = True
    latent: ClassVar[tuple[int, int]] = (1, 64)

    on: On = "delta"
    scope: Annotated[str, OneOf(["layer", "module", "all"])] = "module"
    temperature: Annotated[float | int, Above(0)] = 0.1
    noise: Annotated[float | int, AtLeast(0)] = 0.2
    dropout: Probability = 0.2
    hidden: Widths = field(default_factory=lambda: [256])

    @classmethod
    def kind(cls) -> type[AutoEncoder]:
        """`MetricModule`."""
        return MetricModule

    def _check(self, zoo: Zoo, units: Sequence[str]) -> None:
        super()._check(zoo, units)
        counts = torch.bincount(classes_of(zoo))
        if int((counts >= _FEWEST_OF_A_CLASS).sum()) < 2:
            raise LorabenchError(
                f"metric learns from classes, and needs two with {_FEWEST_OF_A_CLASS} training adapters each; the "
                f"largest of {zoo.name} have {counts.sort(descending=True).values[:3].tolist()}. Take another target, "
                "more adapters, or a representation that asks for no labels (delta_pca, contrastive)"
            )
