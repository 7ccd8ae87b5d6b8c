"""Inner products of adapters' features as classifiers take them, for what reads features without a classifier."""

import numpy as np
import torch
from jaxtyping import Float64, Int64

from lorabench.data import as_taken
from lorabench.errors import LorabenchError
from lorabench.evaluation.evaluator import Evaluator
from lorabench.machine import free_memory
from lorabench.representations import Representation
from lorabench.representations.cache import features_as_they_come
from lorabench.training import Scaling

__all__ = ["check_products", "inner_products"]

_TABLES = 7
"""Of all pairs at one time. Measured: 5.7 for a text head (products, centred ones, and what their eigenvectors take:
a copy, the vectors and LAPACK's two of workspace), 6 where all rows are trained on; 4.4 for places in a ranking."""


def inner_products(
    evaluator: Evaluator, name: str, representation: Representation, rows: Int64[np.ndarray, " m"]
) -> Float64[np.ndarray, "m m"]:
    """⟨x, x'⟩ of the features of every two adapters of `rows`, all units side by side.

    Features are standardised on the evaluator's training rows and clipped, as members read them. One unit is in memory
    at a time, so that no representation is too long.

    Args:
        evaluator: whose zoo's adapters they are, and whose training rows a representation is fitted on.
        name: what results call the representation.
        representation: makes the features, of all layers.
        rows: numbers of adapters.

    Raises:
        LorabenchError: features cannot be made, or so many products do not fit into memory.
    """
    check_products(len(rows))
    found, own = torch.zeros(len(rows), len(rows), dtype=torch.float64), torch.from_numpy(rows)
    train = torch.from_numpy(evaluator.split.train)
    with evaluator.clock.phase(f"features/{name}"):
        for _, features in features_as_they_come(
            representation,
            evaluator.zoo,
            evaluator.split.train,
            evaluator.cache_dir,
            evaluator.device,
            evaluator.labels,
        ):
            scaling = Scaling.of(features[train]) if representation.standardised else None
            values = as_taken(features[own], scaling).double().cpu()
            found += values @ values.T
    return found.numpy()


def check_products(rows: int) -> None:
    """Whether the products of so many adapters, and what is made of them, fit into memory.

    Raises:
        LorabenchError: they do not.
    """
    needed, free = 8 * _TABLES * rows**2, free_memory(torch.device("cpu"))
    if needed > free:
        raise LorabenchError(
            f"the products of {rows} adapters take {needed / 1e9:.1f} GB with what is made of them, and "
            f"{free / 1e9:.1f} GB of memory are free: take a smaller data set (dataset.per_category=N) or a smaller "
            "split.test"
        )
