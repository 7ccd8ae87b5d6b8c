"""A variational autoencoder of every unit; the posterior is the feature vector: its mean, or its spread too."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.options import AtLeast, OneOf
from lorabench.representations.autoencoder import AutoEncoder, block, relative_error
from lorabench.representations.fitted import FittedUnit
from lorabench.representations.learned import Learned, Widths
from lorabench.training import SeededNoise

__all__ = ["VAE", "VAEModule"]

_MEAN, _BOTH = "mean", "mean_and_spread"
_COLLAPSED = 0.01  # nats
_ACTIVE = 0.01  # variance of a posterior mean above which its dimension counts as active


class VAEModule(AutoEncoder):
    """Kingma & Welling 2014, "Auto-encoding variational Bayes", with the weight β of Higgins et al. 2017.

    d → hidden → (μ, log σ²), with batch norm; z = μ + σ·ε; latent → hidden backwards → d. The loss is
    Σ_i (x_i - x̂_i)² + β · ½ Σ_j (μ_j² + σ_j² - 1 - log σ_j²): summed over inputs and over latent dimensions, averaged
    over the batch. In validation z = μ.

    Args:
        beta: β.
        hidden: widths of the encoder's hidden layers.
        posterior: "mean" for μ as the feature vector, "mean_and_spread" for μ and log σ² behind it.
        options: of `AutoEncoder`.
    """

    def __init__(
        self,
        beta: float | int = 0.1,
        hidden: tuple[int, ...] | list[int] = (512, 256),
        posterior: str = _MEAN,
        **options: Any,
    ) -> None:
        super().__init__(beta=beta, hidden=list(hidden), posterior=posterior, **options)
        self.beta = beta

    def build(self) -> None:
        """Encoder and decoder."""
        widths = [self.in_features, *self.hparams["hidden"]]
        self.encoder = nn.Sequential(
            *(block(a, b) for a, b in pairwise(widths)),
            nn.Linear(widths[-1], 2 * self.latent_dim),
        )
        self.noise = SeededNoise()
        back = [self.latent_dim, *reversed(self.hparams["hidden"])]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(back)]
        self.decoder = nn.Sequential(*hidden, nn.Linear(back[-1], self.in_features))

    def posterior(
        self, x: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """(μ, log σ²) of standardised weights."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return mean, log_variance

    def encode(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch latent"]:
        """μ."""
        return self.posterior(x)[0]

    def features(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch f"]:
        """μ, or (μ, log σ²)."""
        return torch.cat(self.posterior(x), -1) if self.hparams["posterior"] == _BOTH else self.encode(x)

    def losses(self, x: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
        """`loss`, `reconstruction` and `kl`, as the class says."""
        mean, log_variance = self.posterior(x)
        z = mean + self.noise(mean) * (0.5 * log_variance).exp() if self.training else mean
        reconstruction = (self.decoder(z) - x).square().sum(-1).mean()
        kl = _kl(mean, log_variance).sum(-1).mean()
        return {"loss": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def diagnostics(self, x: Float[Tensor, "batch d"]) -> dict[str, Any]:
        """Relative reconstruction error; KL in nats by dimension; active dimensions (Burda et al. 2016)."""
        mean, log_variance = self.posterior(x)
        return {
            "reconstruction_error": relative_error(x, self.decoder(mean)),
            "kl": _kl(mean, log_variance).mean(0).tolist(),
            "active_dims": int((mean.var(0, correction=0) > _ACTIVE).sum()),
        }


def _kl(
    mean: Float[Tensor, "batch latent"], log_variance: Float[Tensor, "batch latent"]
) -> Float[Tensor, "batch latent"]:
    """KL of every posterior dimension to the standard normal prior, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


@dataclass
class VAE(Learned):
    """Posteriors of a VAE trained on every unit's flattened weights, [N, latent] or [N, 2·latent].

    What is not named here is an option of `Learned`.

    Args:
        beta: weight of the KL term.
        hidden: widths of the encoder's hidden layers, the decoder's backwards.
        posterior: what of it are features: "mean", or "mean_and_spread" for log σ² behind the means.
    """

    beta: Annotated[float | int, AtLeast(0)] = 0.1
    hidden: Widths = field(default_factory=lambda: [512, 256])
    posterior: Annotated[str, OneOf([_MEAN, _BOTH])] = _MEAN

    def names_of(self, latent: int) -> tuple[str, ...]:
        """`z1`, `z2` and so on, then `log_var1` and so on where these are features."""
        spread = tuple(f"log_var{i + 1}" for i in range(latent)) if self.posterior == _BOTH else ()
        return (*super().names_of(latent), *spread)

    @classmethod
    def kind(cls) -> type[AutoEncoder]:
        """`VAEModule`."""
        return VAEModule

    def concerns(self, unit: str, fitted: FittedUnit) -> Iterator[str]:
        """A collapsed posterior: all KL near 0, so that the features say nothing."""
        kl = fitted.notes["diagnostics"]["kl"]
        if max(kl) < _COLLAPSED:
            yield (
                f"the posterior has collapsed (the largest KL of its {len(kl)} dimensions is {max(kl):.1e} nats): the "
                f"features say nothing. Train with a lower representation.beta than {fitted.arguments['beta']}"
            )
        yield from super().concerns(unit, fitted)
