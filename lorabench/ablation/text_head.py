"""A linear map from features to embeddings of texts, and which of some texts its answer is nearest to."""

import numpy as np
from jaxtyping import Float64, Int64

from lorabench.ablation.first_hit import over_lengths

__all__ = ["PENALTIES", "between_texts", "likeness", "text_head"]

PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""What λ may be, in units of the mean eigenvalue of the training products."""


def text_head(
    products: Float64[np.ndarray, "m m"],
    texts: Float64[np.ndarray, "known d"],
    train: int,
) -> Float64[np.ndarray, "rest d"]:
    """Ridge regression (Hoerl & Kennard 1970) from features to texts in its dual form, less the mean training text.

    The answer to x is k(x)ᵀ (K + λI)⁻¹ (T − t̄): the n training adapters come first, K are their products and k(x)
    theirs with x, all less the mean training features; T are their texts. Of `PENALTIES` that λ is taken whose answers
    to the validation adapters, which come next, have the highest mean cosine with their texts (less t̄); of equal ones
    the largest. No text of an adapter behind them is read.

    Args:
        products: ⟨x, x'⟩ of the training, the validation and all other adapters, in this order.
        texts: embeddings of the texts of the training and the validation adapters.
        train: n, how many of the first are trained on.

    Returns:
        The answers to those behind the validation adapters, of any length.

    >>> x = np.array([[-1.0], [1.0], [0.5], [2.0]])
    >>> texts = np.array([[0.0, 1.0], [2.0, 1.0], [1.5, 1.0]])
    >>> np.sign(text_head(x @ x.T, texts, 2))
    array([[1., 0.]])
    """
    centred, mean = _centred(products, train), texts[:train].mean(0)
    values, vectors = np.linalg.eigh(centred[:train, :train])
    values = np.clip(values, 0, None)
    of_train = vectors.T @ (texts[:train] - mean)
    others = centred[train:, :train] @ vectors
    known, wanted = len(texts) - train, texts[train:] - mean
    best, answers = -np.inf, np.zeros((len(products) - train, texts.shape[1]))
    if values.mean() > 0:
        for penalty in reversed(PENALTIES):
            found = (others / (values + penalty * values.mean())) @ of_train
            score = float(_row_by_row(found[:known], wanted).mean()) if known else 0.0
            if score > best:
                best, answers = score, found
    return answers[known:]


def _centred(products: Float64[np.ndarray, "m m"], train: int) -> Float64[np.ndarray, "m m"]:
    """Products of features less their mean over the first `train`."""
    means = products[:, :train].mean(1)
    return np.asarray(products - means[:, None] - means + means[:train].mean())


def likeness(first: Float64[np.ndarray, "a d"], second: Float64[np.ndarray, "b d"]) -> Float64[np.ndarray, "a b"]:
    """Cosines between two sets of vectors; 0 beside one of zeros."""
    return over_lengths(first @ second.T, np.outer(_lengths(first), _lengths(second)))


def _row_by_row(first: Float64[np.ndarray, "n d"], second: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """The cosine of each vector to the one of the same row."""
    return over_lengths((first * second).sum(1), _lengths(first) * _lengths(second))


def _lengths(vectors: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    return np.asarray(np.linalg.norm(vectors, axis=1))


def between_texts(
    answers: Float64[np.ndarray, "n d"], pair: Float64[np.ndarray, "2 d"], truth: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """1 where the nearer text of a pair, by the cosine, is the true one; 0.5 where both are as near.

    >>> between_texts(np.array([[2.0, 1.0], [1.0, 1.0]]), np.eye(2), np.array([0, 0]))
    array([1. , 0.5])
    """
    near = likeness(answers, pair)
    ahead = near[:, 0] - near[:, 1]
    return np.asarray((np.sign(np.where(truth == 0, ahead, -ahead)) + 1) / 2)
