"""What a learned representation is worth, unit by unit, and where it puts the adapters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from lorabench.representations.learned import Learned
from lorabench.representations.load_from import Loaded
from lorabench.training import standardised

__all__ = ["latent_summary"]

_SHOWN = 2000  # adapters in a map; more are a blot


def latent_summary(
    representation: Learned | Loaded,
    features: Mapping[str, Float32[Tensor, "n _f"]],
    labels: Int64[np.ndarray, " n"],
) -> dict[str, Any]:
    """What `Result.learned` says of one representation.

    Args:
        representation: fitted on every unit.
        features: of every unit, [N, f].
        labels: class of every adapter; those outside the split are -1 and not shown.

    Returns:
        `units`: for every unit the epochs, the best epoch and the module's diagnostics; `maps`: adapters in the plane
        of the first two principal components of all units' standardised features, and of those of the unit with
        the lowest reconstruction error (or loss, where nothing is decoded), with their classes and the plane's shares
        of the variance; `taken_from`: the run that trained it, on its own adapters, where it was not this one;
        `supervised`: that it has learned from the classes of the training adapters, where it has.
    """
    units = {}
    for unit in features:
        notes = representation.fitted_[unit].notes
        units[unit] = {
            "epochs": len(notes["history"]),
            "best_epoch": notes["best_epoch"],
            "learning_curve": [row["val_loss"] for row in notes["history"]],
            **notes["diagnostics"],
        }
    known = np.flatnonzero(labels >= 0)
    if len(known) > _SHOWN:
        known = np.sort(np.random.default_rng(0).choice(known, _SHOWN, replace=False))
    rows = torch.from_numpy(known)
    best = min(units, key=lambda unit: _judged(units[unit]))
    maps = [_map("all units", torch.cat([standardised(one[rows], one[rows]) for one in features.values()], 1))]
    if len(features) > 1:
        maps.append(_map(best, standardised(features[best][rows], features[best][rows])))
    found = {"units": units, "maps": maps, "classes": labels[known].tolist()}
    if isinstance(representation, Loaded):
        found["taken_from"] = representation.load_from
        representation = representation.trained
    return {**found, "supervised": True} if representation.supervised else found


def _judged(unit: Mapping[str, Any]) -> float:
    """What is lowest for the best unit: the reconstruction error, or the loss where nothing is decoded."""
    return float(unit.get("reconstruction_error", min(unit["learning_curve"])))


def _map(unit: str, values: Float64[Tensor, "n f"]) -> dict[str, Any]:
    """Scores on the first two principal components, from the n × n or f × f inner products, whichever are fewer."""
    n, f = values.shape
    if f <= n:
        strength, vectors = torch.linalg.eigh(values.T @ values)
        scores = values @ vectors.flip(1)[:, :2]
    else:
        strength, vectors = torch.linalg.eigh(values @ values.T)
        scores = vectors.flip(1)[:, :2] * strength.flip(0)[:2].clamp_min(0).sqrt()
    shares = (strength.flip(0)[:2] / strength.sum().clamp_min(torch.finfo(torch.float64).tiny)).tolist()
    x, y = (scores[:, i].tolist() if i < scores.shape[1] else [0.0] * n for i in (0, 1))
    return {
        "unit": unit,
        "x": [round(value, 4) for value in x],
        "y": [round(value, 4) for value in y],
        "variance": shares,
    }
