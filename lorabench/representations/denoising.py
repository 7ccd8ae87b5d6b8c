"""A denoising autoencoder of every unit."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor, nn

from lorabench.options import AtLeast
from lorabench.representations.autoencoder import AutoEncoder, block, relative_error
from lorabench.representations.learned import Learned, Widths
from lorabench.training import Probability, SeededNoise

__all__ = ["Denoising", "DenoisingModule"]


class DenoisingModule(AutoEncoder):
    """Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders".

    d → hidden → latent with batch norm and dropout, and back. From its first hidden layer on, every layer of encoder
    and decoder has a linear skip connection beside it, within the encoder and within the decoder: nothing of the input
    reaches the output but by the latent vector. The loss is the squared distance from the clean input, summed over
    inputs, averaged over the batch. Validation adds one fixed draw of the noise; features are of clean weights.

    Args:
        noise: standard deviation of what is added to the standardised weights.
        dropout: of the encoder's hidden units.
        hidden: widths of the encoder's hidden layers.
        options: of `AutoEncoder`.
    """

    def __init__(
        self,
        noise: float | int = 0.2,
        dropout: float | int = 0.2,
        hidden: tuple[int, ...] | list[int] = (512, 256),
        **options: Any,
    ) -> None:
        super().__init__(noise=noise, dropout=dropout, hidden=list(hidden), **options)
        self.noise = noise

    def build(self) -> None:
        """Encoder and decoder."""
        first, *others = self.hparams["hidden"]
        dropout = self.hparams["dropout"]
        self.draw = SeededNoise()
        self.encoder = nn.Sequential(
            block(self.in_features, first, dropout),
            *(_Skipped(block(a, b, dropout), a, b) for a, b in zip([first, *others], others, strict=False)),
            nn.Linear([first, *others][-1], self.latent_dim),
        )
        back = [self.latent_dim, *reversed([first, *others])]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(back)]
        self.decoder = nn.Sequential(
            layers[0],
            *(_Skipped(one, a, b) for one, a, b in zip(layers[1:], back[1:], back[2:], strict=False)),
            nn.Linear(first, self.in_features),
        )

    def encode(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch latent"]:
        """The latent vector of what is given, to which nothing is added."""
        latent: Tensor = self.encoder(x)
        return latent

    def losses(self, x: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
        """`loss`, as the class says."""
        return {"loss": (self.decoder(self.encoder(x + self.noise * self.draw(x))) - x).square().sum(-1).mean()}

    def diagnostics(self, x: Float[Tensor, "batch d"]) -> dict[str, Any]:
        """Relative reconstruction error of clean weights, and of noisy ones against the clean."""
        noisy = x + self.noise * self.draw(x)
        return {
            "reconstruction_error": relative_error(x, self.decoder(self.encoder(x))),
            "denoising_error": relative_error(x, self.decoder(self.encoder(noisy))),
        }


class _Skipped(nn.Module):
    """A layer, and a linear map of its input added to what it says."""

    def __init__(self, layer: nn.Module, width: int, to: int) -> None:
        super().__init__()
        self.layer, self.skip = layer, nn.Linear(width, to, bias=False)

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch g"]:
        found: Tensor = self.layer(x) + self.skip(x)
        return found


@dataclass
class Denoising(Learned):
    """Latent vectors of a denoising autoencoder trained on every unit's flattened weights, [N, latent].

    What is not named here is an option of `Learned`.

    Args:
        noise: standard deviation of what is added to the standardised weights.
        dropout: of the encoder's hidden units.
        hidden: widths of the encoder's hidden layers, the decoder's backwards.
    """

    noise: Annotated[float | int, AtLeast(0)] = 0.2
    dropout: Probability = 0.2
    hidden: Widths = field(default_factory=lambda: [512, 256])

    @classmethod
    def kind(cls) -> type[AutoEncoder]:
        """`DenoisingModule`."""
        return DenoisingModule
