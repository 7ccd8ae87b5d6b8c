"""Test metrics of one member, from its logits; the only place where they are computed."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

__all__ = ["accuracy", "confusion", "macro_f1", "scores"]


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


def confusion(
    predicted: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], n_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Counts of (true class, predicted class)."""
    table: Tensor = multiclass_confusion_matrix(predicted, labels, n_classes)
    return table
