"""What the learned representations share: an autoencoder of one unit's weights as a LightningModule."""

from abc import abstractmethod
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.training import SeededDropout, mean_and_scale, seeded, set_keys

__all__ = ["JUDGED", "AutoEncoder", "block", "relative_error"]

JUDGED = -1  # the step whose random numbers all validations share: their losses differ by the weights alone


class AutoEncoder(pl.LightningModule):
    """One unit's autoencoder, or (`metric`) its encoder alone, whose loss is the only one that is told classes.

    A subclass says what its layers are (`build`), how it encodes (`encode`) and what it minimises (`losses`).
    Everything random (initial weights, order of the rows, dropout, noise, views) follows from `seed` alone, so that it
    comes out the same whether a `pl.Trainer` fits it or `fit_together` does beside others. Weights come standardised:
    less `mean`, over `scale`, which are part of the state.

    Args:
        in_features: d, how many weights the unit has.
        latent_dim: length of the latent vector.
        seed: the unit's seed.
        learning_rate: of Adam.
        plateau_factor: the learning rate is multiplied by this ...
        plateau_patience: ... after more than this many epochs without a lower validation loss.
        sketches: [d_in, columns of Ω, d_out, columns of Ψ] of every module whose ΔW is read through them; none for
            weights as they are.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        latent_dim: int,
        seed: int,
        learning_rate: float | int = 1e-3,
        plateau_factor: float | int = 0.5,
        plateau_patience: int = 5,
        sketches: list[list[int]] | tuple[()] = (),
        **_architecture: Any,
    ) -> None:
        super().__init__()
        # The subclass's arguments are stored too; all are primitives, so checkpoints load weights-only.
        self.save_hyperparameters()
        self.in_features, self.latent_dim, self.seed = in_features, latent_dim, seed
        self.learning_rate, self.plateau_factor, self.plateau_patience = learning_rate, plateau_factor, plateau_patience
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        for number, (d_in, right, d_out, left) in enumerate(sketches):
            self.register_buffer(f"omega_{number}", torch.zeros(d_in, right))
            self.register_buffer(f"psi_{number}", torch.zeros(d_out, left))
        with seeded(seed):
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the layers; arguments are in `self.hparams`."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch latent"]:
        """The latent vector of standardised weights."""

    @abstractmethod
    def losses(self, x: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
        """What is minimised (`loss`), and its parts, of standardised weights; scalars."""

    @abstractmethod
    def diagnostics(self, x: Float[Tensor, "batch d"]) -> dict[str, Any]:
        """What is worth knowing of the fitted module, from standardised weights that it was not trained on."""

    @property
    def sketches(self) -> list[tuple[Tensor, Tensor]]:
        """(Ω, Ψ) of every module that is read through them."""
        count = len(self.hparams["sketches"])
        return [(self.get_buffer(f"omega_{number}"), self.get_buffer(f"psi_{number}")) for number in range(count)]

    def calibrate(self, raw: Float[Tensor, "n d"]) -> None:
        """Take mean and (population) standard deviation of training weights; a constant weight is only shifted."""
        mean, scale = mean_and_scale(raw)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def standardised(self, raw: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Weights as the layers take them."""
        return (raw - self.mean) / self.scale

    def features(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch f"]:
        """The features of standardised weights: the latent vector, unless a subclass says more."""
        return self.encode(x)

    def forward(self, raw: Float[Tensor, "batch d"]) -> Float[Tensor, "batch f"]:
        """The features of weights as they are."""
        return self.features(self.standardised(raw))

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of standardised weights, or of [weights, classes]."""
        del batch_idx
        rows = [batch] if isinstance(batch, Tensor) else batch
        set_keys(self, self.seed, self.global_step)
        found = self.losses(*rows)
        self.log("train_loss", found["loss"], on_step=False, on_epoch=True, batch_size=len(rows[0]))
        return found["loss"]

    def validation_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> None:
        """Log `val_loss`."""
        del batch_idx
        rows = [batch] if isinstance(batch, Tensor) else batch
        set_keys(self, self.seed, JUDGED)
        self.log("val_loss", self.losses(*rows)["loss"], batch_size=len(rows[0]))

    def configure_optimizers(self) -> Any:
        """Adam under ReduceLROnPlateau."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=self.plateau_factor, patience=self.plateau_patience
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


def block(width: int, to: int, dropout: float | int = 0.0) -> nn.Sequential:
    """Linear, batch norm, ReLU, and a dropout where one is asked for.

    Batch norm takes away what a bias adds: its gradient would be rounding alone, which Adam blows up to full steps.
    """
    layers: list[nn.Module] = [nn.Linear(width, to, bias=False), nn.BatchNorm1d(to), nn.ReLU()]
    if dropout:
        layers.append(SeededDropout(dropout))
    return nn.Sequential(*layers)


def relative_error(x: Float[Tensor, "batch d"], reconstructed: Float[Tensor, "batch d"]) -> float:
    """Σ(x - x̂)² / Σx² over standardised weights: 1 is no better than the training mean, 0 is perfect."""
    return float((x - reconstructed).square().sum() / x.square().sum().clamp_min(torch.finfo(x.dtype).tiny))
