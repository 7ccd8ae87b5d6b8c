"""The contract of a classifier: a LightningModule for one member, written once and trained for many."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.classifiers.metrics import scores
from lorabench.classifiers.problem import Fitted, Member, Problem
from lorabench.options import Above, AtLeast, Below, OneOf, check_arguments
from lorabench.training import seeded, set_keys

__all__ = ["Classifier", "ClassifierFactory", "OnEpoch", "Train"]

T = TypeVar("T")
OnEpoch = Callable[[int, int], None]
"""Called after an epoch of some members with its number, from 0, and how many of them have just stopped."""
Train = Callable[..., list[Any]]
"""An engine's training of members by gradient (`lorabench.engines.Engine.fit`)."""


class Classifier(pl.LightningModule):
    """One member: cross-entropy, Adam, ReduceLROnPlateau on the validation loss or accuracy.

    A subclass says only what its network is, in `build`. Everything random (initial weights, shuffling, dropout)
    follows from `seed` alone, so that a member comes out the same whether a `pl.Trainer` fits it by itself or
    `fit_members` fits it among many. A network's buffers are taken as constants.

    Args:
        in_features: f, length of a feature vector.
        n_classes: number of classes.
        seed: the member's seed.
        learning_rate: of Adam.
        batch_size: adapters a step.
        max_epochs: epochs at most.
        patience: epochs without a better one before training stops.
        plateau_factor: the learning rate is multiplied by this ...
        plateau_patience: ... after more than this many epochs without a better one.
        stop_on: by what of the validation rows epochs are judged (the stop, the plateau and the weights that are kept):
            "loss", where lower is better, or "accuracy", where higher is and the first of equal ones is the best.
        grid: setting -> values, the configurations that may be tried (`lorabench.classifiers.choosing`).
        tries: how many configurations are: these settings, then the grid's in order; the best on the validation rows
            is kept.

    Raises:
        LorabenchError: an argument is not allowed.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        seed: int,
        learning_rate: Annotated[float | int, Above(0)] = 1e-3,
        batch_size: Annotated[int, AtLeast(1)] = 32,
        max_epochs: Annotated[int, AtLeast(1)] = 1000,
        patience: Annotated[int, AtLeast(1)] = 20,
        plateau_factor: Annotated[float | int, Above(0), Below(1)] = 0.5,
        plateau_patience: Annotated[int, AtLeast(1)] = 10,
        stop_on: Annotated[str, OneOf(["loss", "accuracy"])] = "loss",
        grid: Mapping[str, Sequence[Any]] | None = None,
        tries: Annotated[int, AtLeast(1)] = 1,
        **_architecture: Any,
    ) -> None:
        super().__init__()
        # The subclass's arguments are stored too; all are primitives, so checkpoints load weights-only.
        self.save_hyperparameters()
        check_arguments(type(self), self.hparams, "classifier.")
        self.in_features, self.n_classes, self.seed = in_features, n_classes, seed
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.max_epochs, self.patience = max_epochs, patience
        self.plateau_factor, self.plateau_patience = plateau_factor, plateau_patience
        self.stop_on = cast("Literal['loss', 'accuracy']", stop_on)
        self.grid, self.tries = dict(grid or {}), tries
        with seeded(seed):
            self.network = self.build()

    @classmethod
    def sizes(cls, problem: Problem, features: int) -> dict[str, Any]:
        """What a member that reads feature set `features` is made with, beside its seed and settings."""
        return {"in_features": problem.width(features), "n_classes": problem.n_classes}

    @classmethod
    def fit_members(
        cls,
        train: Train,
        factory: "ClassifierFactory",
        problem: Problem,
        members: Sequence[Member],
        finish: Callable[[int, Fitted], T],
        on_epoch: OnEpoch | None = None,
    ) -> list[T]:
        """Fit members of one configuration: by the engine's gradient steps, unless a subclass knows another way.

        Args:
            train: the engine's way.
            factory: makes members of this class.
            problem: features, labels and rows.
            members: all that are wanted.
            finish: makes of a member's number, and of the member, what is kept.
            on_epoch: called after an epoch, or once a member where there are none.
        """
        return train(factory, problem, members, finish, on_epoch)

    @classmethod
    def beside(cls, problem: Problem, member: Member) -> dict[str, Fitted]:
        """Fitted candidates by name that the grid's configurations are held against, after them; none have a seed."""
        del problem, member
        return {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The network from [batch, in_features] to logits [batch, n_classes]; arguments are in `self.hparams`."""

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        del batch_idx
        set_keys(self.network, self.seed, self.global_step)
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `val_loss` and `val_accuracy`."""
        del batch_idx
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), batch_size=len(y))
        self.log("val_accuracy", (logits.argmax(-1) == y).float().mean(), batch_size=len(y))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `test_accuracy`, `test_macro_f1` and `test_auroc`; the test loader gives all rows at once."""
        del batch_idx
        x, y = batch
        found = scores(self(x), y, self.n_classes)
        self.log_dict({f"test_{name}": value for name, value in found.items()}, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        """Adam under ReduceLROnPlateau."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=self.better, factor=self.plateau_factor, patience=self.plateau_patience
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}

    @property
    def tried(self) -> int:
        """Configurations that are tried for a member."""
        return self.tries

    @property
    def monitor(self) -> str:
        """What epochs are judged by, as it is logged."""
        return f"val_{self.stop_on}"

    @property
    def better(self) -> Literal["min", "max"]:
        """Whether a lower or a higher one is better."""
        return "min" if self.stop_on == "loss" else "max"


ClassifierFactory = Callable[..., Classifier]
"""Makes the member of a seed from `in_features`, `n_classes` and `seed`; what a classifier's yaml instantiates to."""
