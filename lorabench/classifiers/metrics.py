"""Test metrics of one member, from its logits; the only place where they are computed."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

__all__ = ["accuracy", "confusion", "expected_values", "macro_f1", "number_scores", "scores"]


def accuracy(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], n_classes: int) -> Tensor:
    """Share of the rows whose class is named, a scalar."""
    found: Tensor = multiclass_accuracy(logits.argmax(-1), labels, n_classes, average="micro")
    return found


def macro_f1(predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], n_classes: int) -> Tensor:
    """F1 averaged over the classes that occur in `labels` or in the predictions, a scalar."""
    f1 = multiclass_f1_score(predicted, labels, n_classes, average="none")
    seen = torch.bincount(torch.cat([labels, predicted]), minlength=n_classes) > 0
    found: Tensor = f1[seen].mean()
    return found


def scores(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"], n_classes: int) -> dict[str, Tensor]:
    """Accuracy, macro-F1 and macro one-against-the-rest AUROC (torchmetrics), each a scalar.

    F1 is averaged over the classes that occur in `labels` or in the predictions; AUROC over those that occur in
    `labels` and do not fill them (it is undefined for the others, and NaN where no class is left).
    """
    predicted = logits.argmax(-1)
    count = torch.bincount(labels, minlength=n_classes)
    defined = torch.nonzero((count > 0) & (count < len(labels))).flatten()
    probabilities = logits.double().softmax(-1)  # confident ones do not tie
    areas = [binary_auroc(probabilities[:, c], (labels == c).long()) for c in defined.tolist()]
    return {
        "accuracy": accuracy(logits, labels, n_classes),
        "macro_f1": macro_f1(predicted, labels, n_classes),
        "auroc": torch.stack(areas).mean() if areas else torch.tensor(float("nan")),
    }


def expected_values(logits: Float[Tensor, "n classes"], values: Float64[Tensor, " classes"]) -> Float64[Tensor, " n"]:
    """Σ p_c v_c under the softmax p, where class c stands for the number v_c, [N]."""
    found: Tensor = logits.double().softmax(-1) @ values
    return found


def number_scores(said: Float64[Tensor, " n"], true: Float64[Tensor, " n"]) -> dict[str, Tensor]:
    """Mean absolute error and R² of numbers, each a scalar.

    R² = 1 - Σ (v - said)² / Σ (v - mean v)²; NaN where all true numbers v are the same.

    >>> found = number_scores(torch.tensor([1.0, 2.0, 6.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double())
    >>> [found["mae"].item(), found["r2"].item()]
    [1.0, -3.5]
    """
    left, spread = (said - true).square().sum(), (true - true.mean()).square().sum()
    same = bool((true == true[0]).all())
    return {"mae": (said - true).abs().mean(), "r2": left.new_tensor(float("nan")) if same else 1 - left / spread}


def confusion(
    predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], n_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Counts of (true class, predicted class)."""
    table: Tensor = multiclass_confusion_matrix(predicted, labels, n_classes)
    return table
